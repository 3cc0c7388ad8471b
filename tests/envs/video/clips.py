"""Clips rendered on the spot whose every frame carries its own number, and what a plain full decode makes of a clip.

Legend: H W pixels · C colours (RGB).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 96, 128
BITS, BIT_PX = 12, 10


def picture(number: int) -> np.ndarray:
    """A moving square; above it the frame's number, one block per bit."""
    pixels_HWC = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
    top, left = 16 + 7 * number % (HEIGHT - 40), 5 * number % (WIDTH - 24)
    pixels_HWC[top : top + 24, left : left + 24] = (200, 60, 40)
    for bit in range(BITS):
        pixels_HWC[:BIT_PX, bit * BIT_PX : (bit + 1) * BIT_PX] = 255 if number >> bit & 1 else 0
    return pixels_HWC


def number_in(pixels_HWC: np.ndarray) -> int:
    """The number a picture carries."""
    middles = [pixels_HWC[3:7, bit * BIT_PX + 3 : bit * BIT_PX + 7].mean() > 128 for bit in range(BITS)]
    return sum(int(is_set) << bit for bit, is_set in enumerate(middles))


def numbers_in(pixels_THWC: np.ndarray) -> list[int]:
    """The number of each frame."""
    return [number_in(pixels_HWC) for pixels_HWC in pixels_THWC]


@contextmanager
def unchanged_priority() -> Iterator[None]:
    """SVT-AV1 makes the thread of a root user a real-time one, and with it whatever is started from there later: a few
    such processes that wait in a loop take the machine from everybody else."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def render(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = 100,
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    gop: int = 20,
    rotation: int = 0,
    hflip: bool = False,
    vflip: bool = False,
    pixel_aspect: Fraction | None = None,
    streams: int = 1,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Encode numbered pictures, evenly at `fps` or at `times_ms`; a second stream is small and shows 0."""
    ticks, clock = (range(frames), Fraction(1, fps)) if times_ms is None else (times_ms, Fraction(1, 1000))
    with unchanged_priority(), av.open(str(path), "w", options=muxing or {}) as container:
        for number in range(streams):
            is_shown = number == 0
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.width, stream.height = (WIDTH, HEIGHT) if is_shown else (WIDTH // 2, HEIGHT // 2)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
            stream.codec_context.time_base = clock
            if pixel_aspect:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation or hflip or vflip:
                stream.set_display_rotation(rotation, hflip=hflip, vflip=vflip)
        for number, tick in enumerate(ticks):
            for stream in container.streams.video:
                shown = picture(number) if stream.width == WIDTH else picture(0)[::2, ::2]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
                frame.pts, frame.time_base = tick, clock
                container.mux(stream.encode(frame))
        for stream in container.streams.video:
            container.mux(stream.encode(None))
    return path


def render_grey(
    path: Path, codec: str, width: int, height: int, *, frames: int = 1, options: dict[str, str] | None = None
) -> Path:
    """Encode large pictures of one grey, at 25 fps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([126]) * plane.buffer_size)
        for number in range(frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def render_silence(path: Path) -> Path:
    """An audio file without any picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        for start in range(0, 16_000, 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16_000, start
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return path


def cut_by_copy(source: Path, target: Path, start_s: float) -> Path:
    """Cut without re-encoding: packets from the keyframe before `start_s` on; an edit list hides the early ones."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        start = round(start_s / stream.time_base)
        old.seek(start, stream=stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                new.mux(packet)
    return target


def damage(path: Path, numbers: list[int]) -> Path:
    """Overwrite the packets of some frames with zeros."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in sorted(packets, key=lambda packet: packet.pts):
        if round(float(packet.pts * packet.time_base) * 25) in numbers:
            content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    return path


def full_decode(path: Path, stream_index: int) -> list[tuple[float, av.VideoFrame]]:
    """Every frame in display order with its time, by decoding everything from the start."""
    with av.open(str(path)) as container:
        stream = container.streams[stream_index]
        frames = sorted(container.decode(stream), key=lambda frame: frame.pts)
        first = frames[0].pts
        return [(float((frame.pts - first) * stream.time_base), frame) for frame in frames]
