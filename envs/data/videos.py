"""From a name in a row to a video under the data root; where there is none, what the name seems to mean.

Files are named as annotators wrote them and stored as file systems keep them: of one text, Unicode has a composed and a
decomposed form (NFC, NFD), and either finds the other. Everything else that is not the file's name is refused, with
what to write instead.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import unquote

from envs.data.hub_copy import storage_of
from envs.data.rows import MissingMedia, UnusableRow, shortened
from envs.video.suffixes import VIDEO_SUFFIXES, is_video_name

LONGEST_PATH = 4096  # characters; Linux takes as many bytes
UNNAMABLE = ("Cc", "Zl", "Zp", "Cs")  # Unicode categories: controls, ends of lines and paragraphs, halves of pairs
_AROUND = " \t\n\r\u00a0\u200b\u200e\u200f\u2060\ufeff\"'"
_DRIVE, _URL = re.compile(r"[A-Za-z]:[\\/]+|\\\\[^\\]+\\[^\\]+\\"), re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MOST_PARTS = 12  # of a path whose end is looked for


def video_file(name: str, root: Path, folders: tuple[str, ...] = ("",)) -> str:
    """The path under `root` of the video called `name`, with or without its suffix, in the first folder that has it.

    Where none has it, the path it would have: `confine` then says that it is missing.
    """
    for folder in folders:
        path = f"{folder}/{name}" if folder else name
        if _is_file(root, path):
            return path
        if (found := _with_suffix(root, path)) is not None:
            return found
    return name if is_video_name(name) else f"{name}.mp4"


def confine(path: str, root: Path, kind: str = "video", root_key: str = "video_root") -> str:
    """The absolute path of an existing regular file under `root`, links resolved. Nothing is opened.

    A name may be odd (blanks, quotes, any script), but fits on one line and can be written as UTF-8, as it goes through
    logs, records and pages; so may what it links to.

    Args:
        kind: what the file is, for messages.
        root_key: of the configuration, that names `root`.
    Raises:
        UnusableRow: there is no such file, it lies elsewhere, or its name cannot be used.
    """
    home = root.resolve()
    _require_name(path, path)
    try:
        resolved = _resolved(path, home)
        is_regular = stat.S_ISREG(resolved.stat().st_mode)  # a fifo would be waited for, a device never ends
    except (OSError, ValueError, RuntimeError) as error:  # missing, too long, a circle of links
        reason = error.strerror if isinstance(error, OSError) else error
        advice = _advice(path, home) if isinstance(error, FileNotFoundError | NotADirectoryError) else ""
        raise MissingMedia(f"{kind} {shortened(path)} cannot be found under {root}: {reason}{advice}", path) from error
    if not any(resolved.is_relative_to(place) for place in _storage(home)):
        raise UnusableRow(f"{kind} {shortened(path)} lies outside {root}; {root_key} may be set to a folder around it")
    if not is_regular:
        raise UnusableRow(f"{kind} {shortened(path)} is not a regular file")
    _require_name(path, str(resolved))
    return str(resolved)


_storage = lru_cache(maxsize=64)(storage_of)


def _resolved(path: str, home: Path) -> Path:
    """Where the path leads, as it is spelled or as the disk spells it."""
    try:
        return (home / path).resolve(strict=True)
    except FileNotFoundError:
        if (stored := _stored(path, home, _composed)) is None:
            raise
        return (home / stored).resolve(strict=True)


def _require_name(asked: str, path: str) -> None:
    if len(path) > LONGEST_PATH:
        raise UnusableRow(
            f"video {shortened(asked)}: a path of {len(path)} characters, at most {LONGEST_PATH} are read"
        )
    odd = next((character for character in path if unicodedata.category(character) in UNNAMABLE), None)
    if odd is not None:
        whose = "its name" if asked == path else "the name it links to"
        raise UnusableRow(
            f"video {shortened(asked)}: {whose} holds {odd!a}, no line end, control or byte beyond UTF-8 may"
        )


def _with_suffix(root: Path, path: str) -> str | None:
    """The file that is called so with a video's suffix, in small or capital letters."""
    folder, _, name = path.rpartition("/")
    folder = _stored(folder, root, _composed)
    if not name or folder is None or (listed := _listed_below(root, folder, _with_small_suffix)) is None:
        return None
    for suffix in VIDEO_SUFFIXES:
        found = sorted(listed.get(_with_small_suffix(f"{name}{suffix}"), ()), key=lambda entry: entry != name + suffix)
        if found:
            return f"{folder}/{found[0]}" if folder else found[0]
    return None


def _stored(path: str, home: Path, key: Callable[[str], str]) -> str | None:
    """The path as the disk spells it, where each part is there as it is or once with the same key; None: it is not."""
    found: list[str] = []
    if path.startswith("/"):
        return None
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == ".." or len(part) > 255:
            return None
        place = "/".join(found)
        if not os.path.lexists(home / place / part):
            same = (_listed_below(home, place, key) or {}).get(key(part), ())
            if len(same) != 1:
                return None
            (part,) = same
        found.append(part)
    return "/".join(found)


def _advice(path: str, home: Path) -> str:
    """What the name of a video that is not there seems to mean, and the file that is."""
    meant, remarks = path, []
    for look, remark in _SLIPS:
        changed = look(meant)
        if changed != meant:
            meant, remarks = changed, [*remarks, remark]
    found = next(_candidates(meant, home), None)
    if found is not None and found[1]:
        remarks.append(found[1])
    if found is None and ("$" in path or path.startswith("~")):
        remarks.append("neither ~ nor variables are expanded in rows")
    why = f" ({', '.join(remarks)})" if remarks else ""
    return f"; {shortened(found[0])} is there{why}" if found else why


def _candidates(meant: str, home: Path) -> Iterator[tuple[str, str]]:
    """Files under `home` that a name may stand for, the likeliest first, each with what differs."""
    if meant.startswith("~"):
        meant = os.path.expanduser(meant)
    parts = [part for part in meant.split("/") if part not in ("", ".")]
    for start in range(max(0, len(parts) - _MOST_PARTS), len(parts)):
        end = "/".join(parts[start:])
        whole = start == 0 and not meant.startswith("/")
        remark = "" if whole else "paths are relative to the folder of videos"
        if _inside(end, home):
            yield end, remark
        elif (other := _stored(end, home, _caseless)) and _inside(other, home):
            yield other, "capital and small letters differ"
        elif (named := _with_suffix(home, end)) and _inside(named, home):
            yield named, remark or "the suffix is part of the name"


def _inside(path: str, home: Path) -> bool:
    return _is_file(home, path) and (home / path).resolve().is_relative_to(home)


def _without_scheme(path: str) -> str:
    return unquote(re.sub(r"^file:(//(localhost)?(?=/)|//)?", "", path)) if path.startswith("file:") else path


_SLIPS: tuple[tuple[Callable[[str], str], str], ...] = (
    (lambda path: path.strip(_AROUND), "blanks or quotes stand around the name"),
    (_without_scheme, "a path is meant, not a file: URL"),
    (partial(_URL.sub, "", count=1), "a URL: videos are read from the disk, so download it first"),
    (lambda path: path[match.end() :] if (match := _DRIVE.match(path)) else path, "a Windows path"),
    (lambda path: path.replace("\\", "/"), "folders are parted by /, not by a backslash"),
    (lambda path: unquote(path) if re.search("%[0-9A-Fa-f]{2}", path) else path, "percent-encoding is not decoded"),
)


def _with_small_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(_composed(name))
    return stem + suffix.lower()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(_composed(name).casefold())


def _is_file(root: Path, path: str) -> bool:
    try:
        return (root / path).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _listed_below(root: Path, folder: str, key: Callable[[str], str]) -> Mapping[str, tuple[str, ...]] | None:
    """The names in a folder under `root`, by their keys; None if it cannot be listed."""
    try:
        place = root / folder
        return _listed(str(place), place.stat().st_mtime_ns, key)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=16)
def _listed(folder: str, changed_ns: int, key: Callable[[str], str]) -> Mapping[str, tuple[str, ...]]:
    listed: dict[str, tuple[str, ...]] = {}
    for name in sorted(os.listdir(folder)):
        listed[key(name)] = (*listed.get(key(name), ()), name)
    return listed
