"""One clip of the quickstart world: what happens when, drawn and written as a real mp4.

An EVENT lights the clip's border for some seconds: coarse frames show it. Inside it a DETAIL flashes in the middle, so
briefly that coarse frames never show it. The border's hue tells how brief: it is the cue for the frame rate to ask for.

Legend: T frames · H W pixels · C colours (RGB).

Time is counted in native frames; a slot is half a coarse interval, and no flash is on screen at a slot's first frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

DETAIL_COLOURS = {"red": (225, 25, 25), "green": (25, 205, 45), "blue": (35, 55, 235), "yellow": (240, 220, 30)}
TEMPO_HUES = (  # of the border, from slow details to fast ones
    (40, 205, 215),  # cyan
    (215, 60, 205),  # magenta
    (240, 240, 240),  # white
    (245, 140, 20),  # orange
    (5, 5, 5),  # black
    (110, 230, 110),  # light green
)
BORDER_SHARE = 1 / 7  # of the clip's size, each side: half a ViT patch of 14 px at 56 px
CENTISECONDS = 100


@dataclass(frozen=True, slots=True)
class Flash:
    """A colour filling the middle of the picture from `first_frame` for `num_frames` native frames."""

    first_frame: int
    num_frames: int
    colour: str


@dataclass(frozen=True, slots=True)
class SyntheticClip:
    """Everything a clip shows, in native frames; pixels and evidence follow from it."""

    num_frames: int
    native_fps: int
    size: int  # pixels, square
    event_first_frame: int
    event_end_frame: int  # exclusive
    tempo: int  # index into TEMPO_HUES: 0 is the slowest
    flashes: tuple[Flash, ...]  # in time order
    background_seed: int

    @property
    def event_span_s(self) -> tuple[float, float]:
        """The evidence window in seconds."""
        return self.event_first_frame / self.native_fps, self.event_end_frame / self.native_fps


def lowest_sufficient_fps(flash_frames: int, native_fps: int) -> int:
    """Lowest integer rate whose grid cannot step over a flash.

    Times asked for are rounded to centiseconds, so the widest gap of a grid at rate f is ceil(100 / f) centiseconds; a
    flash is on screen for `flash_frames / native_fps` seconds, half-open, and is hit at any phase iff the gap fits it.

    Raises:
        ValueError: no rate up to the native one suffices.
    """
    for fps in range(1, native_fps + 1):
        if math.ceil(CENTISECONDS / fps) * native_fps <= CENTISECONDS * flash_frames:
            return fps
    raise ValueError(
        f"a flash of {flash_frames} frame(s) at {native_fps} fps is too short for every grid of integer rate"
    )


def shortest_flash(fps: float, native_fps: float) -> int:
    """The fewest native frames of a flash that no grid of this rate can step over, whatever its phase."""
    return math.ceil(Fraction(str(native_fps)) / Fraction(str(fps)))


def draw(clip: SyntheticClip) -> np.ndarray:
    """The clip's pixels, THWC uint8 RGB: a dim background on which a small square drifts, the event, the flashes."""
    rng = np.random.default_rng(clip.background_seed)
    frames_THWC = np.repeat(background(clip.size, rng)[None], clip.num_frames, axis=0)
    add_drifting_square(frames_THWC, rng)
    _light_border(frames_THWC[clip.event_first_frame : clip.event_end_frame], TEMPO_HUES[clip.tempo])
    border = _border_px(clip.size)
    for flash in clip.flashes:
        shown = slice(flash.first_frame, flash.first_frame + flash.num_frames)
        frames_THWC[shown, border:-border, border:-border] = DETAIL_COLOURS[flash.colour]
    return frames_THWC


def write_mp4(frames_THWC: np.ndarray, native_fps: int, path: Path) -> None:
    """Encode with x264 so that the bytes are a function of the pixels.

    One thread, and a constant quantiser: with rate control, x264's macroblock tree reads memory it never wrote, and one
    clip in twenty comes out different from run to run.
    """
    _, height, width, _ = frames_THWC.shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=native_fps, options={"preset": "veryfast", "qp": "14"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 2 * native_fps
        for index, pixels_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, native_fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _border_px(size: int) -> int:
    return max(1, round(size * BORDER_SHARE))


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A dim grey slope with a slight tint, different in every clip."""
    direction = rng.uniform(0, 2 * np.pi)
    across = np.linspace(-0.5, 0.5, size)
    slope_HW = across[:, None] * np.sin(direction) + across[None, :] * np.cos(direction)
    tint_C = rng.uniform(50, 75) + rng.uniform(-8, 8, size=3)
    return np.clip(tint_C + 25 * slope_HW[..., None], 0, 255).astype(np.uint8)


def add_drifting_square(frames_THWC: np.ndarray, rng: np.random.Generator) -> None:
    """A small square that bounces slowly inside the border: motion, but too little to look like a new scene."""
    num_frames, size = frames_THWC.shape[:2]
    border, side = _border_px(size), max(2, size // 9)
    room = size - 2 * border - side
    start_2, velocity_2 = rng.uniform(0, room, size=2), rng.uniform(-0.5, 0.5, size=2)
    grey = int(rng.integers(95, 115))
    for t in range(num_frames):
        folded_2 = (start_2 + velocity_2 * t) % (2 * room)
        y, x = (border + np.minimum(folded_2, 2 * room - folded_2)).astype(int)
        frames_THWC[t, y : y + side, x : x + side] = grey


def _light_border(frames_THWC: np.ndarray, hue: tuple[int, int, int]) -> None:
    border = _border_px(frames_THWC.shape[1])
    for edge in (np.s_[:, :border], np.s_[:, -border:], np.s_[:, :, :border], np.s_[:, :, -border:]):
        frames_THWC[edge] = hue
