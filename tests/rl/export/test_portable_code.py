"""The code beside an export's weights is this package's own, flat, and needs no more than it says."""

import ast

import pytest

from rl.export.portable_code import ALLOWED, OURS, NotPortableError, portable, portable_files

NEVER = ("ray", "vllm", "deepspeed", "omegaconf", "decord", "yaml", "rl", "envs")


def test_the_set_is_closed_and_flat(family):
    files = portable_files(family)
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, f"{name} imports .{node.module}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not {module.split(".")[0] for module in modules} & {*NEVER, *OURS}, name
    assert 15 <= len(files) <= 40 and sum(map(len, files.values())) < 250_000
    other = {"qwen2_5_vl.py", "qwen3_vl.py"} - {f"{family.model_type}.py"}
    assert not other & files.keys()


def test_imports_of_ours_become_relative_and_nothing_else_changes():
    head = '"""Doc."""\n\nfrom rl.policy.scenes import (\n    cut,\n)\nimport numpy as np\n'
    source = f"{head}\n\ndef f():\n    from envs.prompts import a\n"
    text, imported = portable(source, "rl.policy.scenes")
    assert text.splitlines()[0].endswith("rl/policy/scenes.py (Apache-2.0), written by `dynframe export`")
    assert text.split("\n", 1)[1] == source.replace("rl.policy.scenes", ".scenes").replace("envs.prompts", ".prompts")
    assert imported == ["rl.policy.scenes", "envs.prompts"]


@pytest.mark.parametrize(
    "line, told",
    {
        "a library that a stranger has not": (
            "import deepspeed",
            f"imports deepspeed: an export may .* {ALLOWED[0]}",
        ),
        "another": ("from ray.util import queue", r"imports ray\.util"),
        "a module by its whole name": ("import rl.policy.scenes", "write `from rl.policy.scenes import"),
        "a room": ("from rl.policy import scenes", "rl.policy is no module but a room"),
        "a relative one": ("from . import scenes", r"imports \(relative\)"),
        "a name made up at run time": ("import importlib\nimportlib.import_module('rl')", "made up at run time"),
        "likewise": ("__import__('rl')", "line 1: an import by a name made up"),
    }.values(),
)
def test_what_cannot_be_taken_along_is_refused_by_name(line, told):
    with pytest.raises(NotPortableError, match=told):
        portable(line, "rl.policy.scenes")
