"""The law of the house, made executable: who may import whom, and one door per heavy dependency."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("rl", "actors", "rewards", "envs", "cluster")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

DOORS = {  # heavy dependency -> the only files (or folders) that may import it
    "ray": ("actors/", "cluster/", "rl/stations.py"),
    "vllm": ("actors/engine.py", "actors/engine_drivers.py", "rl/policy/vllm_model.py", "rl/policy/vllm_plugin.py"),
    "deepspeed": ("rl/learner.py",),
    "decord": ("envs/video_decord.py",),
    "wandb": ("rl/sinks.py",),
    "omegaconf": ("rl/config_file.py",),
    "fsspec": ("rl/remote_storage.py",),
    "matplotlib": ("rl/encode_figure.py",),
}
MAY_IMPORT = {  # longest prefix wins; entries are prefixes of our modules
    "rl/trajectory.py": (),
    "rl/config.py": (),
    "rl/config_file.py": ("rl.config",),
    "rl/loss.py": (),
    "rl/advantages.py": ("rl.trajectory",),
    "rl/segments.py": ("rl.trajectory",),
    "rl/trainer.py": ("rl.trajectory", "rl.checkpoint", "rl.metrics"),
    "rl/policy/": ("rl.policy", "rl.trajectory", "rl.config"),
    "rl/": ("rl",),
    "envs/": ("rl.trajectory", "envs"),
    "rewards/": ("rl.trajectory", "rewards"),
    "actors/": ("rl", "envs", "rewards", "actors"),
    "cluster/": ("cluster",),
}
COMPOSITION_ROOT = (
    "train",
    "run",
    "cli",
    "__main__",
    "stations",
    "prepare",
    "check",
    "encode_clips",  # joins the video reader, the processor and the vision tower
    "inspection",
    "exams",
    "evaluation",
    "reporter",
    "validation",
    "chaos",  # starts whole runs and strikes them; knows the stream of their tasks
    "verify_resume",  # starts whole runs and kills them
    "viewer",  # a page with pictures: joins rl.report, which is pure, with the decoders of envs
)  # files of rl/
MAY_IMPORT |= {f"rl/{name}.py": ("rl", "actors", "envs", "rewards", "cluster") for name in COMPOSITION_ROOT}
NOBODY_IMPORTS = ("rl.trainer", *(f"rl.{name}" for name in COMPOSITION_ROOT))  # parts never know the whole


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
        if name not in [f"rl/{root}.py" for root in COMPOSITION_ROOT]:
            assert not any(f"{module}.".startswith(f"{whole}.") for whole in NOBODY_IMPORTS), f"{name} knows the whole"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_dumping_grounds(path):
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "types")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Handler", "Wrapper", "Mixin"))
            assert not node.name.startswith("Base")
