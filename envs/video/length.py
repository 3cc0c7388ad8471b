"""How long a clip is: until its last frame has been on screen. One length, by which cut files are told, too.

A frame stays for as long as its packet says. Where packets do not say it (their container knows none, and demuxers put
the usual distance of frames in the place) the last one stays until the end that the container declares, if the file is
whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import av

from envs.video.clock import BROADCAST, MAX_DURATION_S
from envs.video.file import CorruptVideoError
from envs.video.layout import Layout

BAD_SHARE = 0.1  # of a stream, or of the frames asked for, that may be missing
ENDS_ON_OWN_CLOCK = (
    "avi",
    "flv",
    "matroska,webm",
)  # they say where a stream ends, not how long it is; their packets do not say how long they stay
OF_ALL_STREAMS = "asf"  # one length is declared for pictures and sound
MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_CLOCK_TIME = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)\0*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Length:
    """What a stream's packets say."""

    first_s: float  # when the first frame comes on, on the container's own clock
    last_s: float  # when the last one does, after the first
    end_s: float  # when it has been on screen for as long as its packet says
    held_s: float  # until then, from the first packet on, displayable or not


def length_s(
    path: str,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    layout: Layout,
    found: Length,
) -> float:
    """Seconds from the first displayable frame to the end of the last.

    Raises:
        CorruptVideoError: more than a tenth of what is declared is missing.
    """
    declared_s, name = _declared_s(container, stream), container.format.name
    if name == OF_ALL_STREAMS and layout.is_whole:
        declared_s = 0.0  # sound may be longer
    if name in ENDS_ON_OWN_CLOCK:
        declared_s -= max(found.first_s, 0.0)
    if name in ENDS_ON_OWN_CLOCK and layout.is_whole and found.end_s < declared_s:
        return declared_s
    problem = ""
    if found.held_s < (1 - BAD_SHARE) * declared_s:
        problem = f"is truncated: {found.held_s:.2f} of {declared_s:.2f} s are there"
    elif not declared_s and layout.missing_share > BAD_SHARE:
        problem = f"is truncated: {1 - layout.missing_share:.0%} of its bytes are there"
    if problem:
        raise CorruptVideoError(path, problem, "download it again or drop the row")
    if name == MOV and found.last_s < declared_s < found.end_s:
        return declared_s  # an edit list may end while the last frame stays
    return found.end_s


def _declared_s(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float:
    """Length of the stream as its header declares it; 0 where none does.

    What has no header to say it is measured by demuxers at the end of the file, and wrong where clocks start again.
    """
    if container.format.name in BROADCAST or container.format.flags & av.format.Flags.ts_discont.value:
        return 0.0
    declared_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not declared_s and container.duration and len(container.streams) == 1:
        declared_s = container.duration / av.time_base
    if not declared_s and "DURATION" in stream.metadata:  # Matroska, of a stream; a copy's may be the original's
        declared_s = min(_clock_time_s(stream.metadata["DURATION"]), (container.duration or 0) / av.time_base)
    return declared_s if 0 < declared_s <= MAX_DURATION_S else 0.0


def _clock_time_s(text: str) -> float:
    """Seconds of 00:01:02.5; 0 of what is none."""
    found = _CLOCK_TIME.fullmatch(text)
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3]) if found else 0.0
