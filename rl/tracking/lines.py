"""Files of lines on disks that fill up: no half of anything stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 2**16


def append(path: Path, text: str) -> None:
    """Append text: all of it, or none.

    Raises:
        OSError: it could not be written; what was written of it has been cut off again.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:  # a buffer would be written once more when the file is closed
            left = memoryview(text.encode("utf-8"))
            while left:
                left = left[file.write(left) :]
    except OSError:  # of closing too, where a remote disk says so only then
        with suppress(OSError):
            os.truncate(path, before)
        raise


def cut_torn_line(path: Path) -> None:
    """Cut a file back to its last whole line, where a kill or a disk left half of one."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = block_end = file.seek(0, os.SEEK_END)
        while block_end > 0:
            start = max(0, block_end - BLOCK_BYTES)
            file.seek(start)
            newline = file.read(block_end - start).rfind(b"\n")
            if newline >= 0:
                break
            block_end = start
        whole = start + newline + 1 if block_end > 0 else 0
        if whole < end:
            file.truncate(whole)


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then let it take the place: a crash leaves the old one or the new one.

    Args:
        write: called with the path to write to.
    Raises:
        OSError: it could not be written; what was written of it is gone, the old one stays.
    """
    draft = path.with_name(f".{path.name}")
    try:
        write(draft)
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
