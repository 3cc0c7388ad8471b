"""A user's file as a module that can import the files beside it, and nobody else can.

The folder of a file is a package of its own that no other code sees: `import helper` in a file means the helper.py
beside that file, now and later inside its functions, so that two folders may each have one. The standard library and
this project's packages cannot be hidden by a file of the same name, and nothing is added to `sys.path`.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "user_code_"  # and eight hex digits of the folder
PROJECT = frozenset({"rl", "actors", "rewards", "envs", "cluster"})
RESERVED = sys.stdlib_module_names | PROJECT


def module_of(file: Path) -> ModuleType:
    """The module of a file, executed once; two names in one file share it.

    Args:
        file: absolute, symbolic links resolved.
    Raises:
        BaseException: whatever the file raises while it is executed; the next call tries again.
    """
    package = _package_of(file.parent)
    name = f"{package}.{_module_name(file)}"
    if name in sys.modules:
        return sys.modules[name]
    importlib.invalidate_caches()
    _is_neighbour.cache_clear()
    spec = importlib.util.spec_from_file_location(name, file, loader=UserFileLoader(name, str(file)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def hidden_neighbour(error: BaseException, folder: Path) -> Path | None:
    """The file beside a user's that an import may have meant, where a module of that name stands before it."""
    module = getattr(error, "obj", None) if isinstance(error, AttributeError) else getattr(error, "name", None)
    name = getattr(module, "__name__", module)
    if not isinstance(name, str) or name.partition(".")[0] not in RESERVED:
        return None
    beside = [folder / f"{name.partition('.')[0]}.py", folder / name.partition(".")[0]]
    return next((path for path in beside if path.exists()), None)


def neighbours_of(file: Path) -> list[Path]:
    """The files and packages beside a user's file that it imports, by its text, and those that they import."""
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        for name in _imported(waiting.pop()):
            beside = [path for path in (file.parent / f"{name}.py", file.parent / name) if path.exists()]
            if beside and name not in RESERVED and beside[0] not in found and beside[0] != file:
                found[beside[0]] = None
                waiting.append(beside[0])
    return list(found)


def _imported(file: Path) -> Iterator[str]:
    """First names of what a file imports; none of a folder, or of what is no Python."""
    tree = ast.Module([], [])
    with suppress(OSError, ValueError, SyntaxError, RecursionError):
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level < 2:
            yield from [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]


class UserFileLoader(SourceFileLoader):
    """Executes a user's file so that its imports are looked for beside it first; no bytecode is kept, which may be
    stale, in folders that are not ours."""

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew."""
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        """Execute it with an `__import__` of its own, which functions defined in it keep."""
        import_beside = partial(_import_beside, module.__name__.partition(".")[0])
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_beside}
        super().exec_module(module)


class NeighbourFinder:
    """Finds what is imported in packages of users' folders; the only one that knows these."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib.abc.MetaPathFinder.find_spec."""
        if not fullname.startswith(PACKAGE) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = UserFileLoader(spec.loader.name, spec.loader.path)
        return spec


def _import_beside(
    package: str,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` for the files of one folder."""
    first = name.partition(".")[0]
    if level or not _is_neighbour(package, first):
        return builtins.__import__(name, globals, locals, fromlist, level)
    found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist, 0)
    return found if fromlist else sys.modules[f"{package}.{first}"]


@cache
def _is_neighbour(package: str, name: str) -> bool:
    if name in RESERVED:
        return False
    if f"{package}.{name}" in sys.modules:
        return True
    spec = PathFinder.find_spec(f"{package}.{name}", sys.modules[package].__path__)
    if spec is None or spec.loader is not None:
        return spec is not None
    return name not in sys.modules and PathFinder.find_spec(name) is None  # a folder without code may have any name


def _package_of(folder: Path) -> str:
    """The name of the package that stands for a folder."""
    if not any(isinstance(finder, NeighbourFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, NeighbourFinder())
    name = PACKAGE + hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    if name not in sys.modules:
        package = ModuleType(name, f"The files in {folder}.")
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _module_name(file: Path) -> str:
    """A file's name as an identifier; of one that Python cannot import by its name, with a part of its hash."""
    if file.stem.isidentifier():
        return file.stem
    digest = hashlib.sha256(file.name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}_{digest}"
