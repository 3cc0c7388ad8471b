"""The code beside an export's weights: modules of ours as flat files with relative imports, as `auto_map` asks for.

There is one source: what is written is this package's own text, imports of it made relative. The set of modules is
whatever the roots import, and closed: none may need more than ALLOWED, nor import by a name made up at run time.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from rl import __version__
from rl.policy.families import QWEN2_5_VL, QWEN3_VL, Family

ROOT = Path(__file__).parents[2]
OURS = ("rl", "envs", "actors", "rewards", "cluster")
ALLOWED = ("av", "jinja2", "numba", "numpy", "tokenizers", "torch", "transformers")  # beyond the standard library
DYNAMIC = ("importlib", "__import__", "exec", "eval")
CONFIGURATION, PROCESSING = "rl.policy.configuration", "rl.export.processing"
MODELING = {
    QWEN2_5_VL.model_type: "rl.export.modeling_qwen2_5_vl",
    QWEN3_VL.model_type: "rl.export.modeling_qwen3_vl",
}


class NotPortableError(RuntimeError):
    """A module of the export needs what a stranger has not; the message names file and import."""


def portable_files(family: Family) -> dict[str, str]:
    """Text of each file, by name, that a policy of this family is loaded with.

    Raises:
        NotPortableError: the set is not closed.
    """
    waiting, files, origins = [CONFIGURATION, PROCESSING, MODELING[family.model_type]], {}, {}
    while waiting:
        module = waiting.pop()
        name = f"{_flat(module)}.py"
        if origins.setdefault(name, module) != module:
            raise NotPortableError(f"{module} and {origins[name]} would both be {name}")
        if name not in files:
            files[name], imported = portable(_source(module), module)
            waiting += imported
    return dict(sorted(files.items()))


def portable(source: str, module: str) -> tuple[str, list[str]]:
    """A module's text with relative imports, and the modules of ours that it imports.

    Raises:
        NotPortableError: it imports what an export may not need.
    """
    lines, imported = source.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(source)):
        for name in _imported(node):
            if name.split(".")[0] not in (*OURS, *ALLOWED, *sys.stdlib_module_names):
                raise NotPortableError(f"{module} imports {name}: an export may need {', '.join(ALLOWED)} and no more")
        if _is_dynamic(node):
            raise NotPortableError(f"{module}, line {node.lineno}: an import by a name made up at run time")
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in OURS for alias in node.names):
            raise NotPortableError(f"{module}, line {node.lineno}: write `from {node.names[0].name} import …`")
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            if not _file(node.module).is_file():
                raise NotPortableError(f"{module}, line {node.lineno}: {node.module} is no module but a room")
            line, here = lines[node.lineno - 1], node.col_offset
            head = f"from {node.module} import"
            lines[node.lineno - 1] = f"{line[:here]}from .{_flat(node.module)} import{line[here + len(head) :]}"
            imported.append(node.module)
    origin = _file(module).relative_to(ROOT).as_posix()
    return (
        f"# dynframe-rl {__version__}, {origin} (Apache-2.0), written by `dynframe export`\n{''.join(lines)}",
        imported,
    )


def auto_map(family: Family, own_configuration: str) -> dict[str, str]:
    """What config.json says of the files: which class each Auto class of transformers takes."""
    return {
        "AutoConfig": f"{_flat(CONFIGURATION)}.{own_configuration}",
        "AutoModelForImageTextToText": f"{_flat(MODELING[family.model_type])}.{family.architecture}",
    }


def processor_map(processor: str) -> dict[str, str]:
    """As `auto_map`, of processor_config.json."""
    return {"AutoProcessor": f"{_flat(PROCESSING)}.{processor}"}


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module if node.module and not node.level else "(relative)"


def _is_dynamic(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in DYNAMIC


def _flat(module: str) -> str:
    return module.rpartition(".")[2]


def _file(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def _source(module: str) -> str:
    return _file(module).read_text(encoding="utf-8")
