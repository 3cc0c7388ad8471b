"""What docs/security.md says of the code itself: nothing runs what it reads, nothing listens to strangers."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from rl.config.yaml_text import LOADER

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for room in ("rl", "actors", "rewards", "envs", "cluster", "examples") for path in ROOT.glob(f"{room}/**/*.py")
)
RUNS_WHAT_IT_READS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.load"),
    *("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "eval", "exec"),
    *("shutil.unpack_archive", "numpy.load", "np.load"),
}
EVERYWHERE = re.compile(r"""["'](0\.0\.0\.0|::)["']""")


def calls(path):
    """(name, call) of every call in a file: dotted, as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def name_of(path):
    return str(path.relative_to(ROOT))


def test_nothing_that_is_read_is_run():
    found = [
        (name_of(path), name)
        for path in FILES
        for name, call in calls(path)
        if name in RUNS_WHAT_IT_READS and not _reads_data_alone(name, call)
    ]
    assert found == []


def test_the_loader_of_yaml_makes_no_objects():
    assert issubclass(LOADER, yaml.SafeLoader | yaml.CSafeLoader)


def test_no_command_is_put_together_for_a_shell():
    with_shell = [
        name_of(path)
        for path in FILES
        for _, call in calls(path)
        if any(given.arg == "shell" and ast.unparse(given.value) != "False" for given in call.keywords)
    ]
    assert with_shell == []


def test_no_archive_is_unpacked_without_looking_at_its_members():
    assert [name_of(path) for path in FILES for name, _ in calls(path) if name.endswith(".extractall")] == []


def test_nothing_of_ours_listens_on_every_interface():
    assert [name_of(path) for path in FILES if EVERYWHERE.search(path.read_text())] == []


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_every_server_that_a_page_starts_is_on_loopback(page):
    started = [line for line in page.read_text().splitlines() if re.match(r"vllm serve |.*vllm\.entrypoints", line)]
    assert [line for line in started if "--host 127.0.0.1" not in line] == []


def test_the_clusters_that_we_ship_ask_for_a_token():
    kuberay = yaml.safe_load((ROOT / "cluster/kuberay_rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert kuberay["authOptions"] == {"mode": "token"} and kuberay["rayVersion"] >= "2.52"
    ray_up = yaml.safe_load((ROOT / "cluster/ray_cluster.yaml").read_text())
    for commands in (ray_up["head_start_ray_commands"], ray_up["worker_start_ray_commands"]):
        (start,) = [line for line in commands if "ray start" in line]
        assert "RAY_AUTH_MODE=token" in start


def test_the_page_names_tests_that_are_there():
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 8 and [name for name in named if not (ROOT / name).exists()] == []


def _reads_data_alone(name, call):
    """An array without pickles, YAML without tags."""
    given = {each.arg: ast.unparse(each.value) for each in call.keywords}
    return (name in ("numpy.load", "np.load") and given.get("allow_pickle") == "False") or (
        name == "yaml.load" and given.get("Loader") == "LOADER"  # of rl.config.yaml_text, see below
    )
