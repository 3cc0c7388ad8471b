"""Objects of users' code, loaded by the name that a configuration gives them; every mistake is one clear line.

Whatever a module does while it is imported (raise, exit, change the working directory) ends as a `UserCodeError` or is
undone; a module that hangs or ends its process is for the caller to survive.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from rl.user_code.errors import UserCodeError, is_from_signal, message, place
from rl.user_code.neighbours import PROJECT, hidden_neighbour, module_of
from rl.user_code.reference import SUFFIX, CodeReference

SCRIPT = "what it does when it is run, reading arguments included, belongs under if __name__ == '__main__':"


def load_object(what: str, reference: CodeReference, kind: str = "object") -> Any:
    """The object that a reference names; a relative path is taken from the working directory.

    Args:
        what: begins every message, as "reward 'mine.py:f'".
        kind: what the message calls an object that is missing, as "function".
    Raises:
        UserCodeError: no such file, module or attribute, or it cannot be imported.
    """
    if reference.is_file:
        file = _existing(what, reference)
        with _loading(what, f"cannot load {file}", file.parent, str(file)):
            module = module_of(file)
    else:
        if not all(part.isidentifier() for part in reference.source.split(".")):
            raise UserCodeError(f"{what}: {reference.source!r} names neither a module nor a file that ends in {SUFFIX}")
        with _loading(what, f"cannot import {reference.source}", Path.cwd(), reference.source):
            module = _import(what, reference)
    return _attribute(what, module, reference, kind)


def nearest(name: str, offered: Iterable[str]) -> str:
    """The end of a message that names what was probably meant; empty if nothing is near."""
    close = difflib.get_close_matches(name, list(offered), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _existing(what: str, reference: CodeReference) -> Path:
    given = Path(reference.source)
    try:
        file = given.expanduser().resolve()
        if file.is_file():
            return file
        is_there, siblings = file.exists(), [entry.name for entry in file.parent.glob(f"*{SUFFIX}")]
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such user, a link to itself
        raise UserCodeError(f"{what}: {reference.source!r} is no path of a file: {message(error)}") from error
    if is_there:
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise UserCodeError(f"{what}: {file} is {kind}; name a file, as path/file.py:{reference.name}")
    slashes = f"; write / for \\, as {reference.source.replace(chr(92), '/')}" if "\\" in reference.source else ""
    raise UserCodeError(f"{what}: no file {file}{slashes or nearest(file.name, siblings)}")


def _import(what: str, reference: CodeReference) -> ModuleType:
    try:
        return importlib.import_module(reference.source)
    except ModuleNotFoundError as error:
        if not error.name or not f"{reference.source}.".startswith(f"{error.name}."):
            raise  # something that it imports
        file = Path(reference.source.replace(".", "/") + SUFFIX)
        if own := _hidden(reference):
            hint = own.removeprefix("; ")
        elif file.is_file():
            hint = f"there is a file, which is named as '{file}:{reference.name}'"
        else:
            hint = (
                f"is it installed, or reachable through PYTHONPATH? A file is named as 'path/file.py:{reference.name}'"
            )
        raise UserCodeError(f"{what}: cannot import {reference.source}: {message(error)}; {hint}") from error


def _attribute(what: str, module: ModuleType, reference: CodeReference, kind: str) -> Any:
    found: Any = module
    with _loading(what, f"cannot read {reference.name!r} of {reference.source}", Path.cwd(), reference.source):
        for part in reference.name.split("."):
            if not hasattr(found, part):
                names = [name for name in dir(found) if not name.startswith("_")]
                own = [name for name in names if not isinstance(getattr(found, name, None), ModuleType)]
                raise UserCodeError(
                    f"{what}: no {kind} {part!r} in {reference.source}"
                    f"{nearest(part, own) or _hidden(reference) or _some(own)}"
                )
            found = getattr(found, part)
    return found


def _hidden(reference: CodeReference) -> str:
    """What a module's name leads to where a package of this project has it; empty where none has."""
    first = reference.source.partition(".")[0]
    if reference.is_file or first not in PROJECT:
        return ""
    file = f"{reference.source.replace('.', '/')}{SUFFIX}:{reference.name}"
    return f"; {first!r} is a package of dynframe-rl, which comes first: name a file of yours as {file!r}, or rename it"


def _some(names: list[str]) -> str:
    return f"; there are {', '.join(names[:8])}" if names else "; nothing is defined there"


def defined_in(file: Path) -> list[str]:
    """Names of the functions that a file defines at its top level, without executing it; empty if it is no Python."""
    with suppress(OSError, ValueError, SyntaxError, RecursionError):
        return [node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.FunctionDef)]
    return []


@contextmanager
def _loading(what: str, failed: str, folder: Path, script: str) -> Iterator[None]:
    """Surrounds a user's code while it is loaded; whatever it raises names `what`, file and line."""
    try:
        with _process_state_kept(script):
            yield
    except UserCodeError:
        raise
    except BaseException as error:  # sys.exit and the like included
        if is_from_signal(error):
            raise
        raised = message(error).removesuffix(": ")
        raise UserCodeError(f"{what}: {failed}: {raised}{place(error)}{_advice(error, folder)}") from error


def _advice(error: BaseException, folder: Path) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return f"; it ends the process while it is imported: {SCRIPT}"
    if (hidden := hidden_neighbour(error, folder)) is not None:
        return f"; {hidden} is hidden by a module of the same name that comes first: rename it"
    if isinstance(error, ModuleNotFoundError):
        return f"; it is neither installed here nor beside the file (in {folder})"
    return ""


@contextmanager
def _process_state_kept(script: str) -> Iterator[None]:
    """Working directory, arguments and signal handlers are afterwards what they were; what is printed goes to stderr.

    A file sees itself as the program and no arguments, so that a script does not read those of this command. Of the
    environment nothing is undone: libraries read it when they are first used.
    """
    argv, folder = sys.argv, os.open(".", os.O_PATH)
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {signum: signal.getsignal(signum) for signum in signal.valid_signals()} if in_main else {}
    sys.argv = [script]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = argv
        os.fchdir(folder)
        os.close(folder)
        for signum, handler in handlers.items():
            if handler is not None and signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)
