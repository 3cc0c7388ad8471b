"""The reference of all configuration keys, read off the schema: types and defaults, and comments for reasons.

Every field of the schema carries its reason as a comment: behind it, on lines above it, or continued on lines below it
that begin with three spaces after the `#`. `dynframe config` and the documentation are made from what is returned here.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from rl.config.run import RunConfig
from rl.config.typed import UNSET

CONTINUED = "   "  # what a comment begins with that goes on from the field above it
UNITS = {  # by the key's last part, or by the end of it
    **{"_s": "s", "_mib": "MiB", "_gib": "GiB", "_bytes": "bytes", "_nat": "nat", "fps": "frames/s"},
    **{"_fps": "frames/s", "fps_jitter": "frames/s", "_frames": "frames", "_pixels": "pixels", "_tokens": "tokens"},
    **{"_clips": "clips", "_cpus": "CPUs", "_gpus": "GPUs", "_workers": "workers", "num_ranks": "ranks"},
    **{"steps": "steps", "_every": "steps", "_share": "share", "_fraction": "share", "_margin": "share"},
    **{"max_model_len": "tokens", "max_position_embeddings": "tokens", "vocab_size": "tokens", "max_calls": "calls"},
    **{"group_size": "trajectories", "micro_batch": "trajectories", "batch_size": "samples", "tasks_per_step": "tasks"},
    **{"eval_tasks": "tasks", "trajectories_per_step": "trajectories", "keep_checkpoints": "checkpoints"},
    **{"decode_timeout_s": "s of processor time", "rows": "rows", "held_out": "rows"},
    **{"max_num_seqs": "sequences", "gpu_memory_utilization": "share", "size": "pixels", "in_flight": "examples"},
    **{
        "limit": "examples",
        "max_failed_saves": "saves",
        "max_rebuilds": "rebuilds",
    },
}
TYPES = {str: "text", int: "integer", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key."""

    name: str  # dotted; * stands for a name the user chooses
    type: str
    default: str  # as it would stand in YAML; empty: it must be given
    unit: str  # empty: a pure number, or no number
    reason: str  # what it does, and why one would change it


@dataclass(frozen=True, slots=True)
class SectionReference:
    """The keys that stand directly in one section."""

    name: str  # dotted; empty: the top level
    meaning: str
    keys: tuple[KeyReference, ...]


def configuration_reference(section: str = "") -> list[SectionReference]:
    """Every section with its keys, in the schema's order; or one section, dotted, with those in it.

    Returns:
        Empty if there is no such section.
    """
    found = list(_sections(RunConfig, "", ""))
    if not section:
        return found
    wanted = f"{section}."
    return [each for each in found if f"{each.name}.".replace(".*.", ".").startswith(wanted)]


def markdown_table(keys: Iterable[KeyReference]) -> str:
    """Keys as the rows of a Markdown table."""
    rows = [
        (f"`{key.name}`", key.type, f"`{key.default}`" if key.default else "", key.unit, key.reason) for key in keys
    ]
    lines = [("key", "type", "default", "unit", "what it is"), ("---",) * 5, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _sections(declared: type, name: str, meaning: str) -> Iterator[SectionReference]:
    """A section's own keys, then the sections in it."""
    prefix, hints, reasons = f"{name}." if name else "", get_type_hints(declared), _reasons(declared)
    keys, below = [], []
    for field in fields(declared):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            hint, key = get_args(hint)[1], f"{key}.*"
        if is_dataclass(hint):
            below.append((hint, key, reasons[field.name]))
        else:
            keys.append(_key(key, hint, field, reasons[field.name]))
    yield SectionReference(name, _sentence(meaning) + _first_paragraph(declared), tuple(keys))
    for hint, key, reason in below:
        yield from _sections(hint, key, reason)


def _key(name: str, hint: Any, field: Field, reason: str) -> KeyReference:
    return KeyReference(name, _type_name(hint), _default(field), _unit(name) if hint in (int, float) else "", reason)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"list of {TYPES[get_args(hint)[0]]}s"
    return "keys and values" if get_origin(hint) is dict else TYPES[hint]


def _default(field: Field) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return "" if value in (MISSING, UNSET) else json.dumps(value)


def _unit(name: str) -> str:
    last = name.rpartition(".")[2]
    return UNITS.get(last) or next((unit for end, unit in UNITS.items() if end[0] == "_" and last.endswith(end)), "")


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}. " if reason else ""


def _first_paragraph(declared: type) -> str:
    return " ".join(inspect.getdoc(declared).partition("\n\n")[0].split())


def _reasons(declared: type) -> Mapping[str, str]:
    """The comment of every field of a dataclass, by its name."""
    tree, comments, code = _parsed(inspect.getmodule(declared))
    (body,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == declared.__name__)
    return {
        node.target.id: " ".join(_comment_of(node, comments, code))
        for node in body.body
        if isinstance(node, ast.AnnAssign)
    }


def _comment_of(node: ast.AnnAssign, comments: Mapping[int, str], code: frozenset[int]) -> Iterator[str]:
    """Its pieces in reading order: from above, behind, below."""
    first = node.lineno
    while _stands_alone(first - 1, comments, code) and not comments[first - 1].startswith(CONTINUED):
        first -= 1
    last = node.end_lineno
    while _stands_alone(last + 1, comments, code) and comments[last + 1].startswith(CONTINUED):
        last += 1
    return (comments[line].strip() for line in range(first, last + 1) if line in comments)


def _stands_alone(line: int, comments: Mapping[int, str], code: frozenset[int]) -> bool:
    return line in comments and line not in code


@cache
def _parsed(module: ModuleType) -> tuple[ast.Module, dict[int, str], frozenset[int]]:
    """Its tree, its comments by line (without the #), and the lines that hold code."""
    source = inspect.getsource(module)
    comments, code = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string[1:]
        elif token.string.strip():
            code.add(token.start[0])
    return ast.parse(source), comments, frozenset(code)
