"""What `dynframe encode-stats` is given: limits, frame rates, files and folders with videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.video.suffixes import is_video_name
from rl.config.errors import ConfigError
from rl.encode_stats.rows import NO_VIDEO_NAME, Skipped

MOST_FPS = 1000


@dataclass(frozen=True, slots=True)
class EncodeLimits:
    """How much of each clip is looked at."""

    max_seconds: float = 30.0  # from its start
    max_frames: int = 64
    max_pixels: int = 151_200  # per frame, as in video.coarse.max_pixels
    decode_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not (self.max_seconds > 0 and self.max_frames >= 1 and self.decode_timeout_s > 0):
            raise ConfigError(f"--max-seconds and --max-frames must be above 0, got {self}")


def parse_rates(text: str) -> list[float]:
    """`2,4,8.5` to frame rates, sorted, each once.

    Raises:
        ConfigError: not numbers above 0.
    """
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < fps <= MOST_FPS for fps in rates):
        raise ConfigError(f"--fps must be numbers in (0, {MOST_FPS}] separated by commas, such as 2,4,8, got {text!r}")
    return rates


def require_writable(option: str, path: Path | None) -> None:
    """Refuse before any work, rather than after it.

    Raises:
        ConfigError: the file cannot be written there.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: not a file in a folder that can be written")


def find_videos(paths: Sequence[Path]) -> tuple[list[Path], list[Skipped]]:
    """Files as named, whatever their names, then the videos in folders, sorted, each once; the rest with the reason."""
    found: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    for path in paths:
        if path.is_file():
            found.setdefault(path.resolve(), path)
        elif path.is_dir():
            for file in _files_in(path, skipped):
                if is_video_name(file):
                    found.setdefault(file.resolve(), file)
                else:
                    skipped.append(Skipped(str(file), f"{NO_VIDEO_NAME} ({file.suffix or 'no suffix'})"))
        else:
            skipped.append(Skipped(str(path), "no such file or folder"))
    return list(found.values()), skipped


def _files_in(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Every file below, in order; folders that are not entered are added to `skipped`."""

    def not_listed(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"a folder that cannot be listed: {error.strerror}"))

    for home, folders, files in os.walk(folder, onerror=not_listed):
        folders.sort()
        links = [Path(home) / name for name in folders if (Path(home) / name).is_symlink()]  # they may go in circles
        skipped += [
            Skipped(str(link), "a link to a folder is not followed; name it to have it searched") for link in links
        ]
        yield from (Path(home) / file for file in sorted(files))
