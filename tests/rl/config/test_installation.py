"""Configurations that come with the project, found from any folder."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from rl.config import installation
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.config.installation import ROOT, found_file, is_shipped, missing_library, shipped_names
from rl.run.preflight.check import preflight
from rl.run.preflight.libraries import check_libraries
from rl.run.preflight.node_state import look


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", ["quickstart", "configs/quickstart.yaml", "./configs/quickstart.yaml"])
def test_they_are_found_by_name_or_by_their_path_in_a_checkout(given):
    assert found_file(given) == ROOT / "configs" / "quickstart.yaml" and is_shipped(given)
    assert load_config([given]).name == "quickstart"


def test_so_is_deepspeeds_file_which_some_of_them_name():
    assert found_file("configs/deepspeed_zero3.json") == ROOT / "configs" / "deepspeed_zero3.json"


def test_a_file_of_the_users_comes_first(empty_folder):
    (empty_folder / "configs").mkdir()
    for mine in ("configs/quickstart.yaml", "quickstart"):
        (empty_folder / mine).write_text("name: mine\n")
        assert found_file(mine) == Path(mine) and not is_shipped(mine)


@pytest.mark.parametrize(
    "given", ["quickstart.yaml", "other/quickstart.yaml", "configs/../quickstart", "configs/none.yaml", ""]
)
def test_nothing_else_is_taken_for_one(given):
    assert not is_shipped(given)


def test_every_one_of_them_has_a_name():
    assert {"quickstart", "real_clips", "lora"} <= set(shipped_names())


def test_a_library_of_the_system_that_vllm_needs_is_told_with_its_package_before_a_run_and_by_every_node(monkeypatch):
    """vLLM's own word for it comes from inside an engine that has started: '_C' object has no attribute."""
    assert missing_library() == ""
    monkeypatch.setattr(installation, "NUMA", "libnothing.so.1")
    told = missing_library()
    assert told.startswith("libnothing.so.1 cannot be loaded") and told.endswith("apt-get install libnuma1")
    assert look(()).problems == (told,) and [finding.detail for finding in check_libraries()] == [told]
    with pytest.raises(ConfigError, match="libnothing"):
        preflight(load_config(["quickstart"]))


def test_without_vllms_cpu_build_it_is_not_asked_for(monkeypatch):
    def uninstalled(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "NUMA", "libnothing.so.1")
    monkeypatch.setattr(installation, "version", uninstalled)
    assert missing_library() == ""
