"""Pixels at given times, stateless: index and times in, frames out (PyAV).

Decoding starts at the last entry that will do, jumps only when a later group of pictures is needed, and skips pictures
that nobody wants and no other picture refers to. What comes out is what decoding everything from the start gives: where
something is damaged, that is what is done.

Legend: N displayable frames of a clip · T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from envs.video.file import CorruptVideoError, demuxer, regular_file
from envs.video.forward_pass import DamageMetError, ForwardPass
from envs.video.index import VideoIndex
from envs.video.length import BAD_SHARE
from envs.video.orientation import Orientation

Picture = tuple[int, av.VideoFrame, bool]  # frame number, the picture, whether it stands in for a damaged one
Numbered = tuple[int, av.VideoFrame]


def read_frames(
    index: VideoIndex, times_s: Sequence[float], size_HW: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """The frame on screen at each time, in the order asked; times may repeat and go backwards.

    Returns:
        Pixels (T, H, W, 3) uint8 RGB, resized by area; presentation time of each frame; how many were damaged and are
        shown by their nearest neighbour.
    Raises:
        FrameRangeError: a time outside the clip.
        CorruptVideoError: more than a tenth of the frames is damaged.
    """
    asked_T = index.frames_on_screen(times_s)
    scaler = Scaler(index.orientation, size_HW)
    wanted, places_T = np.unique(asked_T, return_inverse=True)
    shown, pixels, damaged = [], [], []
    for number, picture, is_damaged in decode(index, wanted):
        shown.append(number)
        pixels.append(scaler(picture))
        damaged.append(is_damaged)
    return in_order_asked(index, places_T, shown, pixels, damaged)


def in_order_asked(
    index: VideoIndex,
    places_T: np.ndarray,
    shown: Sequence[int],
    pixels: Sequence[np.ndarray],
    damaged: Sequence[bool],
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """Distinct frames to the order and multiplicity asked for, or the refusal of too many damaged ones."""
    num_damaged = int(np.sum(np.asarray(damaged)[places_T]))
    if num_damaged > BAD_SHARE * len(places_T):
        problem = f"{num_damaged} of {len(places_T)} frames asked for are damaged"
        raise CorruptVideoError(index.path, problem, "re-encode or replace the file")
    times_s_T = tuple(float(index.times_s_N[shown[place]]) for place in places_T)
    return np.stack([pixels[place] for place in places_T]), times_s_T, num_damaged


class Scaler:
    """Pictures to RGB of one size, by swscale's area filter: the cheapest antialiased one, closest to a box mean."""

    def __init__(self, orientation: Orientation, size_HW: tuple[int, int]) -> None:
        self._orientation = orientation
        self._height, self._width = size_HW[::-1] if orientation.swaps_sides else size_HW
        self._reformatter = VideoReformatter()  # keeps its filter tables from picture to picture

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        scaled = self._reformatter.reformat(
            picture, self._width, self._height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return self._orientation(scaled.to_ndarray())


def decode(index: VideoIndex, wanted: Sequence[int]) -> Iterator[Picture]:
    """Decode the frames of these numbers (sorted, distinct) and yield one picture for each, in order.

    A frame that does not come out is replaced by the nearest that does, and marked damaged; its number is then that of
    the picture shown. Which one that is does not depend on what else is wanted.

    Raises:
        CorruptVideoError: nothing comes out at all.
        VideoOpenError: the file can no longer be opened, or is another one by now.
        MemoryError: there was too little for it.
    """
    waiting = deque(int(number) for number in wanted)
    with regular_file(index.path, index.file_key) as file, ExitStack() as opened:

        def open_anew() -> av.container.InputContainer:
            opened.close()
            return opened.enter_context(demuxer(file))

        try:
            yield from _pictures(index, ForwardPass(index, open_anew, waiting), waiting)
        except DamageMetError:
            yield from _pictures(index, ForwardPass(index, open_anew, None), waiting)


def _pictures(index: VideoIndex, forward: ForwardPass, waiting: deque[int]) -> Iterator[Picture]:
    before: Numbered | None = None
    while waiting:
        forward.skip_towards(waiting[0])
        after = forward.next_picture()
        if after is None and before is None:
            forward.meet_damage()
            raise CorruptVideoError(index.path, "no picture can be decoded", "re-encode or replace the file")
        while waiting and (after is None or after[0] >= waiting[0]):
            if after is None or after[0] > waiting[0]:
                forward.meet_damage()
            yield _nearest(index, waiting.popleft(), before, after)
        before = after or before


def _nearest(index: VideoIndex, number: int, before: Numbered | None, after: Numbered | None) -> Picture:
    candidates = [candidate for candidate in (before, after) if candidate is not None]
    if after is not None and after[0] == number:
        candidates = [after]  # two frames may have one time
    shown, picture = min(candidates, key=lambda c: abs(index.times_s_N[c[0]] - index.times_s_N[number]))
    return shown, picture, shown != number or picture.is_corrupt
