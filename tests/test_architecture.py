"""The law of the house, made executable: who may import whom, and one door per heavy dependency."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("rl", "actors", "rewards", "envs", "cluster")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

DOORS = {  # heavy dependency -> the only files (or folders) that may import it
    "ray": ("actors/", "cluster/", "rl/train.py", "rl/cli.py"),
    "vllm": ("actors/engine.py", "rl/policy/vllm_model.py", "rl/policy/vllm_plugin.py"),
    "deepspeed": ("rl/learner.py",),
    "decord": ("envs/video.py",),
    "wandb": ("rl/sinks.py",),
    "omegaconf": ("rl/config.py",),
}
MAY_IMPORT = {  # longest prefix wins; entries are prefixes of our modules
    "rl/trajectory.py": (),
    "rl/config.py": (),
    "rl/loss.py": (),
    "rl/advantages.py": ("rl.trajectory",),
    "rl/segments.py": ("rl.trajectory",),
    "rl/trainer.py": ("rl.trajectory", "rl.checkpoint", "rl.metrics"),
    "rl/policy/": ("rl.policy", "rl.trajectory", "rl.config"),
    "rl/": ("rl",),
    "rl/train.py": ("rl", "actors", "envs", "rewards", "cluster"),
    "rl/cli.py": ("rl", "actors", "envs", "rewards", "cluster"),
    "envs/": ("rl.trajectory", "envs"),
    "rewards/": ("rl.trajectory", "rewards"),
    "actors/": ("rl", "envs", "rewards", "actors"),
    "cluster/": ("cluster",),
}
NOBODY_IMPORTS = ("rl.trainer", "rl.train", "rl.cli")  # parts never know the whole


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    found = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_obey_the_law(path):
    name = str(path.relative_to(ROOT))
    allowed = MAY_IMPORT[max((prefix for prefix in MAY_IMPORT if name.startswith(prefix)), key=len)]
    for module in imports(path):
        top = module.split(".")[0]
        if top in DOORS:
            assert name.startswith(DOORS[top]), f"{name} imports {module}; the door to {top} is {DOORS[top]}"
        if top in ROOMS:
            assert any(f"{module}.".startswith(f"{prefix}.") for prefix in allowed), f"{name} may not import {module}"
        if name not in ("rl/train.py", "rl/cli.py", "rl/__main__.py"):
            assert not any(f"{module}.".startswith(f"{whole}.") for whole in NOBODY_IMPORTS), f"{name} knows the whole"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_dumping_grounds(path):
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "types")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Handler", "Wrapper", "Mixin"))
            assert not node.name.startswith("Base")
