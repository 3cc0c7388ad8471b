"""Milliseconds of decoding per GRPO group: this project's reader against plain decord, on real clips.

One group = the coarse frames at 2 fps over the whole clip, then 8 windows of random place (0.5 s to all of the clip)
at 1-10 fps. Plain decord is used as people use it: one reader opened per request, `get_batch` of indices time * fps.
Both resize to the same size within --max-pixels. Variants are interleaved within each repeat; every repeat draws new
windows, the same for all variants, and a cold frame cache. Ratios are per repeat, so drift of the machine cancels.

    python benchmarks/decode.py $DYNFRAME_REAL_DATA --repeats 5

`ours` has the default frame cache of 256 MiB, `no cache` decodes each window afresh. The clock is CPU time, proof
against busy neighbours, and both decode in place; `--clock wall` measures elapsed time, and `ours` then decodes in a
process of its own, as in training. Segmentation is FlexiVideo's scene cut of every block, as a share of `ours`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np
from tables import median_and_range, print_conditions, print_table

from envs.video.reader import VideoError, VideoIndex, VideoReader, index_video
from envs.video.suffixes import is_video_name
from rl.config.policy import ScenesConfig
from rl.policy.scenes import segment_scenes

GRID = 28  # frame sides are multiples of patch * merge
Request = tuple[float, ...]  # times asked for, in seconds


@dataclass(frozen=True)
class Measured:
    """One clip: milliseconds per group, one entry per repeat."""

    name: str
    ours_ms: list[float]
    no_cache_ms: list[float]
    decord_ms: list[float]
    scenes_ms: list[float]


def main() -> None:
    options = parse_arguments()
    clips = sorted(path for path in options.folder.rglob("*") if is_video_name(path))
    if not clips:
        raise SystemExit(f"{options.folder}: no video files")
    segment_scenes(np.zeros((2, GRID, GRID, 3), np.uint8), ScenesConfig())  # compile
    rng = np.random.default_rng(options.seed)
    print_conditions("av", "decord", "numpy", repeats=options.repeats)
    print(f"clock: {options.clock}\n")
    measured = [row for path in clips if (row := measure(path, options, rng)) is not None]
    if not measured:
        raise SystemExit(f"{options.folder}: none of {len(clips)} videos can be read")
    whole = Measured("all clips", *(np.sum([getattr(row, f"{k}_ms") for row in measured], axis=0) for k in COLUMNS))
    headings = ("clip", "ours ms", "no cache ms", "decord ms", "decord / ours", "segmentation share")
    print_table(headings, [cells(row) for row in (*measured, whole)])


COLUMNS = ("ours", "no_cache", "decord", "scenes")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="searched for videos, subfolders too")
    parser.add_argument("--repeats", type=int, default=5, help="groups per clip and variant (default 5)")
    parser.add_argument("--windows", type=int, default=8, help="windows per group (default 8)")
    parser.add_argument("--max-pixels", type=int, default=151_200, help="per frame, after resizing (default 151200)")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="what is measured (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of the windows (default 0)")
    return parser.parse_args()


def measure(path: Path, options: argparse.Namespace, rng: np.random.Generator) -> Measured | None:
    """Time every variant `repeats` times, interleaved; None if the clip cannot be read."""
    try:
        index = index_video(path)
    except VideoError as error:
        print(error)
        return None
    size_HW = fit(index, options.max_pixels)
    clock = {"cpu": time.process_time, "wall": time.perf_counter}[options.clock]
    row = Measured(path.name, [], [], [], [])
    for _ in range(options.repeats):
        group = draw_group(index, options.windows, rng)
        with VideoReader(workers=0 if options.clock == "cpu" else 1) as reader:
            reader.describe(str(path))  # a process is started once per run, not per group
            blocks, ms = timed(lambda reader=reader, group=group: serve(reader, path, group, size_HW), clock)
            row.ours_ms.append(ms)
        row.scenes_ms.append(timed(lambda blocks=blocks: [segment_scenes(b, ScenesConfig()) for b in blocks], clock)[1])
        cacheless = VideoReader(workers=0, frame_cache_bytes=0)
        row.no_cache_ms.append(
            timed(lambda reader=cacheless, group=group: serve(reader, path, group, size_HW), clock)[1]
        )
        row.decord_ms.append(timed(lambda group=group: serve_with_decord(path, group, size_HW), clock)[1])
    return row


def draw_group(index: VideoIndex, windows: int, rng: np.random.Generator) -> list[Request]:
    coarse = tuple(np.arange(0, index.duration_s, 0.5))
    requests = [coarse]
    for _ in range(windows):
        length_s = rng.uniform(min(0.5, index.duration_s), index.duration_s)
        start_s, fps = rng.uniform(0, index.duration_s - length_s), rng.uniform(1, 10)
        requests.append(tuple(start_s + np.arange(max(1, int(length_s * fps))) / fps))
    return requests


def serve(reader: VideoReader, path: Path, group: list[Request], size_HW: tuple[int, int]) -> list[np.ndarray]:
    return [reader.frames(str(path), times_s, size_HW)[0] for times_s in group]


def serve_with_decord(path: Path, group: list[Request], size_HW: tuple[int, int]) -> list[np.ndarray]:
    blocks = []
    for times_s in group:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), width=size_HW[1], height=size_HW[0], num_threads=1)
        numbers = np.minimum(np.asarray(times_s) * reader.get_avg_fps(), len(reader) - 1).astype(int)
        blocks.append(reader.get_batch(numbers.tolist()).asnumpy())
    return blocks


def fit(index: VideoIndex, max_pixels: int) -> tuple[int, int]:
    scale = min(1.0, (max_pixels / (index.height * index.width)) ** 0.5)
    height, width = (max(GRID, int(side * scale) // GRID * GRID) for side in (index.height, index.width))
    return height, width


def timed(work: Callable[[], list], clock: Callable[[], float]) -> tuple[list, float]:
    started = clock()
    result = work()
    return result, 1000 * (clock() - started)


def cells(row: Measured) -> tuple[str, ...]:
    """A row of the table: medians; ratio and share are taken within a repeat."""
    ratios = [theirs / ours for theirs, ours in zip(row.decord_ms, row.ours_ms, strict=True)]
    shares = [scenes / ours for scenes, ours in zip(row.scenes_ms, row.ours_ms, strict=True)]
    milliseconds = (f"{statistics.median(ms):.0f}" for ms in (row.ours_ms, row.no_cache_ms, row.decord_ms))
    return (row.name, *milliseconds, median_and_range(ratios), f"{statistics.median(shares):.1%}")


if __name__ == "__main__":
    main()
