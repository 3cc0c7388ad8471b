"""What FFmpeg's own command line shows of a file: the second opinion that ours is held against.

The program is the one of the imageio-ffmpeg wheel or, without it, a recent one on PATH: another release than the
libraries that PyAV brings, and above them code of its own for clocks, edit lists, orientation and damage.

Legend: N frames in the order in which they are shown · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHOWN = re.compile(
    r"pts:\s*(\S+) pts_time:(\S+)\s+(?:duration:\s*\S+ duration_time:(\S+))?.*"
    r" sar:(\d+)/(\d+) s:(\d+)x(\d+) .*iskey:(\d)"
)
DECLARED = re.compile(r"Duration: (\d+):(\d+):(\d+\.\d+)")
OLDEST = 7  # major version of FFmpeg
HARMLESS = ("non monotonically increasing dts", "Error submitting a packet to the muxer")  # of the raw output


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Every picture that the program puts out."""

    times_s_N: np.ndarray  # on the file's clock; not a number where the file gives none
    stays_s_N: np.ndarray  # as declared for each frame; 0 where unknown
    shapes_N: tuple[tuple[int, int], ...]  # (H, W) after orientation, with square pixels
    pixels_NHWC: np.ndarray
    declared_s: float  # length that the container states, 0 if none
    is_key_N: np.ndarray
    complaints: tuple[str, ...]  # errors while reading


@functools.cache
def program() -> str | None:
    """Path of the ffmpeg program, None where there is none of a release that tells how long frames stay."""
    try:
        import imageio_ffmpeg

        found = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    return found if found is not None and _release(found) >= OLDEST else None


def _release(path: str) -> int:
    """The program's major version; builds between releases count as the latest."""
    said = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False).stdout
    numbered = re.match(r"ffmpeg version n?(\d+)\.", said)
    return int(numbered[1]) if numbered else sys.maxsize if said.startswith("ffmpeg version") else 0


def show(path: Path, size_HW: tuple[int, int], *, as_written: bool = False, timeout_s: float = 60.0) -> Shown:
    """Decode a file's best moving stream whole, every picture once.

    Args:
        as_written: the file's clock as it is; the program otherwise mends one that jumps in a broadcast.
    Raises:
        subprocess.TimeoutExpired: the program did not end.
    """
    height, width = size_HW
    filters = f"showinfo=checksum=0,scale={width}:{height}:flags=area,format=rgb24"
    given = ["-nostdin", "-hide_banner", *(["-copyts"] if as_written else []), "-threads", "1", "-i", f"file:{path}"]
    given += ["-an", "-sn", "-dn"]
    given += ["-fps_mode", "passthrough", "-vf", filters, "-f", "rawvideo", "pipe:1"]
    done = subprocess.run(
        [program(), "-loglevel", "repeat+level+info", *given], capture_output=True, timeout=timeout_s, check=False
    )
    lines = done.stderr.decode(errors="replace").splitlines()
    frames = [found for line in lines if "Parsed_showinfo" in line and (found := SHOWN.search(line))]
    pixels = np.frombuffer(done.stdout, np.uint8)
    count = min(len(frames), len(pixels) // (height * width * 3))
    frames = frames[:count]
    return Shown(
        times_s_N=np.array([_seconds(frame[2]) for frame in frames]),
        stays_s_N=np.array([_seconds(frame[3] or "0") for frame in frames]),
        shapes_N=tuple(_square(*(int(frame[place]) for place in (4, 5, 6, 7))) for frame in frames),
        pixels_NHWC=pixels[: count * height * width * 3].reshape(count, height, width, 3),
        declared_s=_declared_s(lines),
        is_key_N=np.array([frame[8] == "1" for frame in frames], dtype=bool),
        complaints=tuple(line for line in lines if "[error]" in line and not any(word in line for word in HARMLESS)),
    )


def _seconds(text: str) -> float:
    return float("nan") if text == "NOPTS" else float(text)


def _square(sar_width: int, sar_height: int, width: int, height: int) -> tuple[int, int]:
    """Shape with square pixels; the width is what stretches."""
    return (height, round(width * sar_width / sar_height)) if sar_width and sar_height else (height, width)


def _declared_s(lines: list[str]) -> float:
    for line in lines:
        if found := DECLARED.search(line):
            hours, minutes, seconds = found.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return 0.0
