"""How a configuration names an object in a user's code: "package.module:name" or "path/file.py:name"."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".py"


@dataclass(frozen=True, slots=True)
class CodeReference:
    """An object in a module or in a file."""

    source: str  # "package.module" or "path/file.py"
    name: str  # of the object; dotted: an attribute of it

    @property
    def is_file(self) -> bool:
        """Whether it stands in a file, not in a module that Python finds."""
        return self.source.endswith(SUFFIX)

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"


def parse_reference(text: str) -> CodeReference | None:
    """The reference that a text is; None if it is none, as a built-in name."""
    source, _, name = (part.strip() for part in text.rpartition(":"))
    return CodeReference(source, name) if source and name else None


def taken_from(text: str, folder: Path) -> str:
    """The same reference with a relative path taken from `folder`; any other text as it is.

    What then lies below the working directory is written relative to it, so that a copy of a project, as a cluster's
    job works in, has the same configuration.
    """
    reference = parse_reference(text)
    if reference is None or not reference.is_file:
        return text
    path = Path(os.path.abspath(folder / Path(reference.source).expanduser()))
    here = Path.cwd()
    return str(CodeReference(str(path.relative_to(here) if path.is_relative_to(here) else path), reference.name))


def absolute(text: str) -> str:
    """The same reference with its path absolute, for processes that work elsewhere; any other text as it is."""
    reference = parse_reference(text)
    if reference is None or not reference.is_file:
        return text
    return str(CodeReference(os.path.abspath(Path(reference.source).expanduser()), reference.name))
