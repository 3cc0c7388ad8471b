"""The laws of the house, made executable: rooms are layers, one door per heavy dependency, no dumping grounds."""

import ast
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("rl", "actors", "rewards", "envs", "cluster")
FILES = sorted(path for folder in TOP for path in (ROOT / folder).rglob("*.py"))

ROOMS = (  # from the roof down: a room imports itself and rooms below it, never one above
    "rl/cli/",
    "rl/fault_injection/",
    "rl/encode_stats/",
    "rl/evaluation/",
    "rl/export/",
    "rl/published_data/",
    "rl/run/",
    "rl/run/preflight/",
    "rl/run/prepare/",
    "rl/run/console/",
    "rl/trainer.py",
    "rl/report/",
    "rl/monitoring/",
    "actors/",
    "actors/cluster/",
    "actors/worker/",
    "actors/engine/",
    "rl/tracking/",
    "rl/memory_plan/",
    "rl/learner/",
    "rl/algorithm/",
    "rl/checkpoint/",
    "rl/checkpoint/lease/",
    "rl/serving/",
    "rewards/",
    "envs/benchmarks/",
    "envs/data/",
    "envs/synthetic/",
    "envs/",  # the episode: what stands at the top of the folder
    "envs/tools/",
    "envs/video/",
    "envs/answers/",
    "rl/policy/vllm/",
    "rl/policy/stock/",
    "rl/policy/",
    "rl/weight_transfer/",
    "rl/config/",
    "rl/user_code/",
    "rl/group_summary.py",
    "rl/trajectory.py",
    "rl/calls.py",
    "rl/packed_tuples.py",
    "rl/sha256.py",
    "rl/own_address.py",
)
NARROWER = {  # rooms and files that may import less than all that is below them
    "rl/trainer.py": ("rl.trajectory", "rl.tracking.stage_clock"),
    "rl/report/": ("rl.report", "rl.tracking", "rl.config", "rl.trajectory"),
    "rl/report/overview/": ("rl.report", "rl.tracking", "rl.config", "rl.checkpoint.lease"),  # does a process write it?
    "rl/algorithm/": ("rl.algorithm", "rl.trajectory", "rl.policy", "rl.config.algorithm"),
    "rl/checkpoint/": ("rl.checkpoint", "rl.trajectory"),
    "rewards/": ("rewards", "envs.answers", "rl.user_code", "rl.trajectory"),
    "envs/": ("envs", "rl.user_code", "rl.trajectory"),
    "envs/answers/": ("envs.answers", "rl.trajectory"),
    "rl/algorithm/loss.py": ("rl.algorithm.loss_totals",),
    "rl/config/": ("rl.config", "rl.user_code"),
    "rl/user_code/": ("rl.user_code",),
    "rl/weight_transfer/": (
        "rl.weight_transfer",
        "rl.own_address",
    ),
    "cluster/": ("cluster",),
    "cluster/installed/": ("rl.cli.main",),
}
OUTSIDE = ("rl/__main__.py", "rl/__init__.py", "cluster/")  # of the layers: the front door, and files for a cluster
PUBLISHES = {
    *("push_to_hub", "create_repo", "create_commit", "create_branch", "create_pull_request", "preupload_lfs_files"),
    *("upload_file", "upload_folder", "upload_large_folder"),
}
DOORS = {  # heavy dependency -> the only files (or folders) that may import it
    "httpx": ("rewards/judge_client.py",),
    "ray": ("actors/", "cluster/", "rl/run/workers.py"),
    "vllm": ("actors/engine/", "rl/policy/vllm/", "rl/serving/"),
    "deepspeed": ("rl/learner/engine.py", "rl/learner/loading.py", "rl/learner/sequence_parallel.py"),
    "peft": ("rl/policy/lora.py",),
    "decord": ("envs/video/decord_backend.py",),
    "wandb": ("rl/tracking/sinks.py",),
    "omegaconf": ("rl/config/file.py",),
    "fsspec": ("rl/checkpoint/remote.py",),
    "pyarrow": ("envs/data/parquet_rows.py",),
    "matplotlib": ("rl/encode_stats/figure.py",),
}


LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FILE = 400, 60, 150  # lines: what grows beyond has a second noun in it


def test_files_and_functions_are_short():
    lines = {name_of(path): path.read_text().count("\n") for path in FILES if path.stem != "__init__"}
    assert [name for name, length in lines.items() if length > LONGEST_FILE] == []
    assert statistics.median(lines.values()) < MEDIAN_FILE
    functions = {
        f"{name_of(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert [name for name, length in functions.items() if length > LONGEST_FUNCTION] == []


def test_every_file_stands_in_a_room():
    assert [name for name in map(name_of, FILES) if room_of(name) is None and not name.startswith(OUTSIDE)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_there(room):
    assert (ROOT / room).exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path))
def test_imports_run_downwards(path):
    name, room = name_of(path), room_of(name_of(path))
    for module in ours(path):
        target = room_of(file_of(module))
        assert name.startswith(OUTSIDE) or target is None or ROOMS.index(target) >= ROOMS.index(room), (
            f"{name} ({room}) imports {module} ({target}), which stands above it: move the function that is needed down"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path))
def test_math_rewards_and_environments_know_only_what_they_need(path):
    name = name_of(path)
    rules = [prefix for prefix in NARROWER if name.startswith(prefix)]
    if not rules:
        return
    allowed = NARROWER[max(rules, key=len)]
    for module in ours(path):
        assert any(f"{module}.".startswith(f"{prefix}.") for prefix in allowed), f"{name} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path))
def test_heavy_dependencies_come_in_by_their_door(path):
    for module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        assert doors is None or name_of(path).startswith(doors), f"{name_of(path)} imports {module}; its door: {doors}"


@pytest.mark.cli
@pytest.mark.parametrize("module", ["actors.reward", "actors.rollout_group", "actors.learner_group", "rl.run.train"])
def test_what_only_reads_and_routes_does_without_torch(module):
    """Two seconds and 200 MB of every reward worker; the driver has it once TensorBoard's writer is open."""
    told = f"import sys, {module}; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", told], cwd=ROOT, timeout=120).returncode == 0


def test_nothing_here_publishes_to_the_hub():
    """An export is a folder; who publishes it does so with a command of their own."""
    used = {name_of(path): {word for node in nodes(path) for word in names_in(node)} for path in FILES}
    assert {"snapshot_download", "HfApi"} <= used["rl/run/prepare/hub.py"]  # reading is what there is
    assert {name: found & PUBLISHES for name, found in used.items() if found & PUBLISHES} == {}


def names_in(node):
    """What is named in a node of a syntax tree."""
    return [getattr(node, of) for of in ("id", "attr", "name") if isinstance(getattr(node, of, None), str)]


def test_no_two_files_import_each_other():
    known = {file_of_path(path): {file_of(module) for module in ours(path)} for path in FILES}
    assert [(one, other) for one, found in known.items() for other in found if one in known.get(other, ())] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path))
def test_no_dumping_grounds(path):
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "types")
    for node in nodes(path):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Handler", "Wrapper", "Mixin"))
            assert not node.name.startswith("Base")


@cache
def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


file_of_path = name_of


def room_of(name: str) -> str | None:
    return max((room for room in ROOMS if name.startswith(room)), key=len, default=None)


@cache
def file_of(module: str) -> str:
    """The file that holds `package.module` or `package.module.name`; a package is its __init__.py."""
    whole = module.replace(".", "/")
    for place in (whole, whole.rpartition("/")[0]):
        if (ROOT / f"{place}.py").is_file():
            return f"{place}.py"
        if (ROOT / place / "__init__.py").is_file():
            return f"{place}/__init__.py"
    raise AssertionError(f"no file for {module}")


def ours(path: Path) -> list[str]:
    return [module for module in imports(path) if module.split(".")[0] in TOP]


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> list[str]:
    found = [alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
