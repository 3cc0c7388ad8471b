"""`dynframe encode-stats`: clips decoded, cut and encoded in each mode, and what that cost. Composition root: it joins
the video reader, the processor and the vision tower.

What is measured, and how:
- Seconds are CPU seconds (user and system), of this process for cutting and encoding, which use one thread, and of the
  decoding process for decoding (in steps of 10 ms). On an idle machine that is the time on the wall; on a busy one it
  still is the cost. Decoding goes through a process that can be killed, without a store, once per rate: all modes share
  it. Modes are interleaved within each repeat, so that drift of the machine meets all alike.
- Peak memory is of tensors, counted to the byte by `PeakMemory` in a pass of its own, which also warms up. A process
  per measurement would add seconds of imports to each and the allocator's noise to the result.
- The tower has random weights: neither seconds nor bytes depend on their values, and a geometry is all that is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
from rich.console import Console

from envs.video.reader import VideoError, VideoIndex, VideoReader
from rl.config.errors import ConfigError
from rl.config.policy import ScenesConfig
from rl.encode_stats.inputs import EncodeLimits, find_videos
from rl.encode_stats.rows import (
    MODES,
    OWN_MODE,
    Block,
    EncoderCost,
    EncodeReport,
    EncodeRow,
    Measured,
    Skipped,
    block_times,
)
from rl.encode_stats.vision_config import VisionGeometry, named_geometry, own_scenes
from rl.policy.geometry import Geometry
from rl.policy.processor import Processor
from rl.run.console.stages import counted_stage
from rl.trajectory import Frames

if TYPE_CHECKING:
    from rl.encode_stats.tower import FlopCounter, Tower

Result = TypeVar("Result")

MEASURED_PARAMETERS = 50_000_000  # towers up to this size are run unless told otherwise
VOCABULARY = 768  # of the tokenizer that no text goes through


def ignore_rows(rows: Sequence[EncodeRow]) -> None:
    """Nobody waits for the rows of a clip."""


def encode_stats(
    paths: Sequence[Path],
    rates: Sequence[float],
    geometry_name: str,
    limits: EncodeLimits,
    console: Console,
    *,
    measure: bool | None = None,
    repeats: int = 3,
    on_clip: Callable[[Sequence[EncodeRow]], None] = ignore_rows,
) -> EncodeReport:
    """Decode, cut and encode the start of every clip at every rate in every mode.

    Args:
        paths: files, and folders to be searched with all that is in them.
        rates: frames per second.
        geometry_name: one of `vision_config.GEOMETRIES`, or a checkpoint's folder.
        measure: run a vision tower of that size, or only count; None: run it if it is small.
        repeats: of each measurement of seconds.
        on_clip: is given the rows of a clip as soon as it is done.
    Raises:
        ConfigError: no such geometry, or not one readable video among the paths.
    """
    geometry = named_geometry(geometry_name)
    videos, skipped = find_videos(paths)
    own = own_scenes(geometry_name)
    modes = {**MODES, OWN_MODE: own} if own else MODES
    processors = _processors(geometry, limits, modes, Path(geometry_name))
    from rl.encode_stats.tower import FlopCounter, Tower

    flops = FlopCounter(geometry, modes)
    if measure is None:
        measure = flops.parameters <= MEASURED_PARAMETERS
    tower = Tower(geometry, modes) if measure and videos else None
    rows: list[EncodeRow] = []
    with (
        VideoReader(timeout_s=limits.decode_timeout_s, workers=1, frame_cache_bytes=0) as reader,
        counted_stage(console, f"encoding {len(videos):,} videos", len(videos) * len(rates)) as encoding,
    ):
        meter = ClipMeter(reader, limits, processors, flops, tower, repeats)
        for number, video in enumerate(videos, start=1):
            of_clip: list[EncodeRow] = []
            try:
                clip = reader.describe(str(video))
                for fps in rates:
                    of_clip += meter.rows(clip, fps)
                    encoding.advance()
            except VideoError as error:  # a clip is compared whole or not at all
                skipped.append(Skipped(str(video), f"{error.problem}; {error.remedy}"))
            else:
                rows += of_clip
                on_clip(of_clip)
            encoding.update(number * len(rates))  # also where a clip ended early
    if not rows:
        why = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:3]) or "the folders are empty"
        raise ConfigError(f"not one readable video among {', '.join(map(str, paths))} ({why})")
    extent = (limits.max_seconds, limits.max_frames, limits.max_pixels)
    return EncodeReport(geometry_name, flops.parameters, *extent, tuple(rows), tuple(skipped), modes)


@dataclass(frozen=True)
class ClipMeter:
    """Decodes, cuts, counts and encodes clips."""

    reader: VideoReader
    limits: EncodeLimits
    processors: Mapping[str, Processor]  # by mode
    flops: FlopCounter
    tower: Tower | None  # None: count only
    repeats: int

    def rows(self, clip: VideoIndex, asked_fps: float) -> list[EncodeRow]:
        """One clip at one rate in every mode.

        Raises:
            VideoError: the clip cannot be decoded.
        """
        times_s, fps = block_times(
            clip.duration_s, clip.native_fps, asked_fps, self.limits.max_seconds, self.limits.max_frames
        )
        size = next(iter(self.processors.values())).fit(clip.height, clip.width, self.limits.max_pixels)
        decodes = [
            _timed(lambda: self.reader.frames(clip.path, times_s, size), _with_children) for _ in range(self.repeats)
        ]
        (pixels_THWC, shown_s, _), _ = decodes[-1]
        decode_s = Measured(tuple(seconds for _, seconds in decodes))
        cuts = {mode: processor.cut(pixels_THWC) for mode, processor in self.processors.items()}  # compiles
        frames = {mode: Frames(pixels_THWC, shown_s, lengths, *size, digest="") for mode, lengths in cuts.items()}
        segment_s = _interleaved(lambda mode: self.processors[mode].cut(pixels_THWC), frames, self.repeats)
        costs = self._encoder_costs(frames)
        rows = []
        for mode, processor in self.processors.items():
            geometry, lengths = processor.geometry, cuts[mode]
            tokens_per_scene = geometry.clock(frames[mode]).tokens_per_scene
            block = Block(clip.path, asked_fps, fps, mode, *size, lengths, tokens_per_scene)
            flops = self.flops.count(mode, lengths, size[0] // geometry.patch, size[1] // geometry.patch)
            rows.append(EncodeRow(block, flops, decode_s, segment_s[mode], costs.get(mode)))
        return rows

    def _encoder_costs(self, frames: Mapping[str, Frames]) -> dict[str, EncoderCost]:
        """By mode; empty where no tower is run."""
        tower = self.tower
        if tower is None:
            return {}
        packed = {mode: self.processors[mode].pack(block) for mode, block in frames.items()}
        peaks = {mode: tower.peak_bytes(mode, block) for mode, block in packed.items()}
        seconds = _interleaved(lambda mode: tower.encode(mode, packed[mode]), packed, self.repeats)
        return {mode: EncoderCost(seconds[mode], peaks[mode]) for mode in packed}


def _processors(
    geometry: VisionGeometry, limits: EncodeLimits, modes: Mapping[str, ScenesConfig], folder: Path
) -> dict[str, Processor]:
    """One per mode; no text goes through them, so any tokenizer will do.

    Args:
        folder: of the policy, where there is one: frames may be compared by what lies there.
    Raises:
        ConfigError: frames would have to be smaller than a merged block.
    """
    from rl.policy.tiny import train_tokenizer

    unit = geometry.patch * geometry.merge
    if limits.max_pixels < unit * unit:
        raise ConfigError(f"--max-pixels must be at least {unit * unit} ({unit} x {unit}), got {limits.max_pixels}")
    tokenizer = train_tokenizer(VOCABULARY)
    shape = Geometry(geometry.patch, geometry.merge, 2, VOCABULARY, geometry.family)
    return {mode: Processor(tokenizer, shape, scenes, folder) for mode, scenes in modes.items()}


def _interleaved(work: Callable[[str], object], modes: Iterable[str], repeats: int) -> dict[str, Measured]:
    """Seconds of some work in each mode, in turn."""
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(repeats):
        for mode, values in seconds.items():
            values.append(_timed(lambda m=mode: work(m))[1])
    return {mode: Measured(tuple(values)) for mode, values in seconds.items()}


def _timed(work: Callable[[], Result], clock: Callable[[], float] = time.process_time) -> tuple[Result, float]:
    started = clock()
    result = work()
    return result, clock() - started


def _with_children() -> float:
    """CPU seconds of this process and of those it started."""
    seconds = time.process_time()
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        seconds += used.user + used.system
    return seconds
