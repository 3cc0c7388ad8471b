"""Names that strangers gave to the members of an archive: a path below a folder, or the reason why it is none."""

from __future__ import annotations

import re
import unicodedata

from envs.data.rows import shortened
from envs.data.videos import LONGEST_PATH, UNNAMABLE

_DRIVE = re.compile(r"[A-Za-z]:")
LONGEST_PART = 255  # bytes: what file systems take


class UnsafeName(ValueError):
    """Not a path below a folder; the message says why."""


def path_below(name: str) -> str:
    """The name as a relative path, without "." and empty parts; empty for the folder itself.

    Raises:
        UnsafeName: absolute, leads upwards, cannot be written on one line, or is too long.
    """
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise UnsafeName(f"{shortened(name)} is an absolute path")
    if "\\" in name:
        raise UnsafeName(f"{shortened(name)} has a backslash in it, which systems read unlike")
    if len(name) > LONGEST_PATH:
        raise UnsafeName(f"{shortened(name)} is a path of {len(name)} characters, at most {LONGEST_PATH} are read")
    odd = next((character for character in name if unicodedata.category(character) in UNNAMABLE), None)
    if odd is not None:
        raise UnsafeName(f"{shortened(name)} holds {odd!a}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafeName(f"{shortened(name)} leads out of its folder")
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        raise UnsafeName(f"{shortened(name)} has a part of more than {LONGEST_PART} bytes")
    return "/".join(parts)
