"""What a video file holds: when each frame is on screen, where decoding can start, how pictures are shown.

Legend: P packets in decoding order · N displayable frames in display order.

Times are seconds on the video clock: 0 is the first displayable frame. A frame is on screen at t if it is the last one
whose presentation time is <= t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.video.file import FileKey, FrameRangeError
from envs.video.orientation import UPRIGHT, Orientation

SAME_TIME_S = 1e-6  # two times closer than this are one: slack for floats
PAST_END_S = 0.011  # asked times are in centiseconds: this far beyond the end is still the last frame


@dataclass(frozen=True, slots=True, eq=False)
class VideoIndex:
    """The clock of a video's best stream."""

    path: str
    file_key: FileKey  # the identity of what was indexed
    container: str  # FFmpeg's name of the format
    stream_index: int
    codec: str
    duration_s: float  # of what is displayable, until the last frame has been on screen
    native_fps: float  # average
    height: int  # as displayed: pixels made square, turned
    width: int
    orientation: Orientation  # of decoded pictures
    pixel_aspect: float  # width of a decoded pixel by its height
    is_vfr: bool
    num_video_streams: int
    num_parts: int  # files joined in this one, each with a clock of its own
    has_discarded: bool  # packets decoded but not displayed (edit lists, references that are never shown)
    counts_frames: bool  # presentation times are missing: frames are numbered as they come out of a whole decode
    needs_first_packet: bool  # decoding goes by what stands in the first packet, wherever it begins
    reorder_depth: int  # pictures that are decoded before one and shown after it, at most
    frame_bytes: int  # of one decoded picture
    ticks_P: np.ndarray  # presentation times on one axis, stream time base
    seek_P: np.ndarray  # times to ask the container for, stream time base
    place_P: np.ndarray  # in the file, bytes; -1: not known
    size_P: np.ndarray  # bytes
    start_P: np.ndarray  # per packet: where decoding must begin to get its frame right (an entry's position)
    number_P: np.ndarray  # of the frame it gives; -1: none
    packet_N: np.ndarray  # position of each displayable frame's packet
    times_s_N: np.ndarray

    @property
    def num_frames(self) -> int:
        """N."""
        return len(self.times_s_N)

    @property
    def shown_as(self) -> tuple[str, ...]:
        """What is done to a clip, because its file asks for it, before it is shown; nothing to most."""
        done = {
            str(self.orientation): self.orientation != UPRIGHT,
            f"with pixels of {self.pixel_aspect:.4g} : 1 made square": self.pixel_aspect != 1,
            f"with {self.num_parts} clocks made one": self.num_parts > 1,
        }
        return tuple(what for what, applies in done.items() if applies)

    @property
    def has_open_groups(self) -> bool:
        """Some frame is decoded after a keyframe but displayed before it: it needs the pictures before, too."""
        return bool(np.any(np.diff(self.start_P) < 0))

    def frames_on_screen(self, times_s: Sequence[float]) -> np.ndarray:
        """Number of the frame shown at each time.

        Raises:
            FrameRangeError: a time before 0, after the end, or not a number.
        """
        asked_s = np.asarray(times_s, dtype=np.float64)
        outside = asked_s[~((asked_s >= -SAME_TIME_S) & (asked_s <= self.duration_s + PAST_END_S))]
        if len(outside):
            problem = f"asked for the frame at {outside[0]:.3f} s of a clip of {self.duration_s:.3f} s"
            raise FrameRangeError(self.path, problem, "clamp the window to the clip first")
        return np.maximum(np.searchsorted(self.times_s_N, asked_s + SAME_TIME_S, side="right") - 1, 0)
