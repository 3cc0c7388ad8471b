"""What a group of siblings costs in decoding, in whole decodes of its clip: coarse frames, then twelve random looks.

Five kinds of clip are rendered (or videos of your own are given), and each is used as the environment uses it: coarse
frames by `video.coarse`, then looks by `retrieval` at random windows and rates, sizes and frame cache as configured by
default. One whole decode is every packet through a plain decoder, without scaling.

    python benchmarks/decode_looks.py                    # renders its clips into a temporary folder
    python benchmarks/decode_looks.py a.mp4 b.mkv        # yours

`pictures` are the pictures that decoders hand out, over those of the clip; `processor time` includes scaling, and
reading and writing the frame cache. Every repeat draws new looks and begins with an empty frame cache.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tables import median_and_range, print_conditions, print_table

from envs.initial_observation import CoarseFrameRules, coarse_frame_times, fit_visual_tokens
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times, parse_call, render_call
from envs.video import forward_pass
from envs.video.reader import VideoIndex, VideoReader
from rl.config.data import VideoConfig
from rl.config.policy import ScenesConfig
from rl.policy.geometry import Geometry
from rl.policy.processor import Processor
from rl.policy.tiny import train_tokenizer
from rl.trajectory import TimeSpan

QUIET = {"deadline": "realtime", "x265-params": "log-level=error"}


@dataclass(frozen=True)
class Kind:
    """A clip to be rendered."""

    name: str
    codec: str
    height: int
    width: int
    seconds: float
    gop: int
    pixel_format: str = "yuv420p"
    suffix: str = ".mp4"
    fps: int = 30
    options: tuple[tuple[str, str], ...] = (("preset", "veryfast"),)


KINDS = (
    Kind("270p H.264", "libx264", 270, 480, 30, 48),
    Kind("720p H.264, a keyframe in 8 s", "libx264", 720, 1280, 60, 250),
    Kind("720p HEVC, 10 bits", "libx265", 720, 1280, 40, 250, "yuv420p10le", options=(("preset", "ultrafast"),)),
    Kind("4K H.264", "libx264", 2160, 3840, 40, 250, fps=12, options=(("preset", "ultrafast"),)),
    Kind("720p VP9", "libvpx-vp9", 720, 1280, 40, 128, suffix=".webm", options=(("cpu-used", "8"),)),
)


def main() -> None:
    options = parse_arguments()
    print_conditions("av", "numpy", repeats=options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        clips = [(path.name, path) for path in options.clips] or list(rendered(Path(folder), options))
        print_table(
            ("clip", "frames", "pictures: whole decodes", "processor time: whole decodes", "whole decode ms"),
            [measure(name, path, options) for name, path in clips],
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, help="videos; without any, five kinds are rendered")
    parser.add_argument("--looks", type=int, default=12, help="per group (default 12)")
    parser.add_argument("--repeats", type=int, default=3, help="groups per clip (default 3)")
    parser.add_argument("--seconds", type=float, help="of each rendered clip (default: 6 to 60)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sides of rendered clips (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the looks (default 0)")
    return parser.parse_args()


def measure(name: str, path: Path, options: argparse.Namespace) -> tuple[str, ...]:
    """A row of the table."""
    pictures, relative, whole_s = [], [], []
    for repeat in range(options.repeats):
        whole_s.append(whole_decode_s(path))
        video = VideoConfig()
        with (
            VideoReader(
                workers=0,
                frame_cache_bytes=video.frame_cache_bytes,
                frame_cache_disk_bytes=video.frame_cache_disk_bytes,
            ) as reader,
            counted_pictures() as counted,
        ):
            index = reader.describe(str(path))
            counted.clear()
            began_s = time.process_time()
            roll_out(reader, index, options.looks, random.Random(f"{options.seed}/{name}/{repeat}"))
            relative.append((time.process_time() - began_s) / whole_s[-1])
            pictures.append(sum(counted) / index.num_frames)
    costs = (median_and_range(values, ".2f") for values in (pictures, relative))
    return (name, str(index.num_frames), *costs, median_and_range([1000 * seconds for seconds in whole_s]))


def roll_out(reader: VideoReader, index: VideoIndex, looks: int, rng: random.Random) -> None:
    """Decode what a group sees: its coarse frames, then its looks."""
    coarse, rules, processor = CoarseFrameRules(), RetrievalRules(), fitting_processor()
    times_s = coarse_frame_times(index.duration_s, index.native_fps, coarse)
    times_s, size = fit_visual_tokens(times_s, index, processor, coarse)
    look_size = processor.fit(index.height, index.width, rules.max_pixels)
    reader.frames(index.path, times_s, size, look_size)
    for _ in range(looks):
        start_s, end_s = sorted(rng.uniform(0, index.duration_s) for _ in range(2))
        asked = render_call(TimeSpan(start_s, min(index.duration_s, max(end_s, start_s + 0.2))), rng.uniform(1, 10))
        call = parse_call(asked, duration_s=index.duration_s, native_fps=index.native_fps, rules=rules)
        if (granted := getattr(call, "num_frames", 0)) > 0:
            assert len(reader.frames(index.path, frame_times(call), look_size)[0]) == granted


def fitting_processor() -> Processor:
    """What fits frames to the vision tower of Qwen2.5-VL."""
    return Processor(train_tokenizer(768), Geometry(14, 2, tokens_per_second=2, vocab_size=768), ScenesConfig(), Path())


def whole_decode_s(path: Path) -> float:
    """Processor time of decoding every packet of the first stream."""
    began_s = time.process_time()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass
    return time.process_time() - began_s


@contextmanager
def counted_pictures() -> Iterator[list[int]]:
    """Pictures per packet that is decoded from here on."""
    counted: list[int] = []
    decode_packet = forward_pass.decode_packet

    def counting(decoder: av.CodecContext, packet: av.Packet | None) -> list[av.VideoFrame] | None:
        pictures = decode_packet(decoder, packet)
        counted.append(len(pictures or ()))
        return pictures

    forward_pass.decode_packet = counting
    try:
        yield counted
    finally:
        forward_pass.decode_packet = decode_packet


def rendered(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Clips of the five kinds: a camera that pans over a texture, with film grain."""
    for number, kind in enumerate(KINDS):
        path = folder / f"{number}{kind.suffix}"
        height, width = (side // options.shrink // 2 * 2 for side in (kind.height, kind.width))
        smaller = replace(kind, height=height, width=width)
        render(smaller, path, round(kind.fps * (options.seconds or kind.seconds)))
        yield kind.name, path


def render(kind: Kind, path: Path, num_frames: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (kind.height // 8 + 40, kind.width // 8 + 40, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    grain = rng.integers(0, 12, texture.shape, dtype=np.uint8)
    texture = texture // 2 + 60 + grain
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=kind.fps, options=QUIET | dict(kind.options))
        stream.height, stream.width, stream.pix_fmt = kind.height, kind.width, kind.pixel_format
        stream.codec_context.gop_size, stream.codec_context.thread_count = kind.gop, 1
        for number in range(num_frames):
            top, left = (int(150 + 140 * np.sin(number / speed)) for speed in (37, 53))
            shown = np.ascontiguousarray(texture[top : top + kind.height, left : left + kind.width])
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, kind.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
