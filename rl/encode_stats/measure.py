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

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.console import Console

from envs.video.reader import VideoError, VideoIndex, VideoReader
from rl.config.errors import ConfigError
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.encode_stats.cost import QWEN2_5_VL_3B, VisionGeometry, encode_flops, read_vision_config
from rl.encode_stats.rows import (
    MODES,
    NO_VIDEO_NAME,
    Block,
    EncoderCost,
    EncodeReport,
    EncodeRow,
    Measured,
    Skipped,
    block_times,
)
from rl.policy.geometry import Geometry
from rl.policy.processor import Processor
from rl.policy.scenes import segment_scenes
from rl.policy.token_ids import PolicyFilesError
from rl.run.console import counted_stage
from rl.trajectory import Frames

Result = TypeVar("Result")

VIDEO_SUFFIXES = (  # tried in folders; a file named on the command line is tried whatever its name
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
    *(".ts", ".vob", ".webm", ".wmv"),
)
MEASURED_PARAMETERS = 50_000_000  # towers up to this size are run unless told otherwise
MOST_FPS = 1000
VOCABULARY = 768  # of the tokenizer that no text goes through


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


class Tower:
    """A vision tower of random weights and one patch embedding per mode, each of which fits its scenes."""

    def __init__(self, vision: Mapping[str, Any], modes: Mapping[str, ScenesConfig]) -> None:
        """
        Args:
            vision: a `vision_config` section.
            modes: names and scene parameters.
        """
        import torch
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

        from rl.policy.patch_embed import make_patch_embed
        from rl.policy.vision_tower import make_vision_tower

        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = Qwen2_5_VLVisionConfig(**vision)
        self._visual = make_vision_tower(config, next(iter(modes.values())))
        self._embeds = {
            mode: make_patch_embed(config.hidden_size, config.patch_size, scenes).requires_grad_(False)
            for mode, scenes in modes.items()
        }
        for embed in self._embeds.values():
            torch.nn.init.normal_(embed.weight, std=config.initializer_range)

    def encode(self, mode: str, packed: Any) -> None:
        """One pass over a packed block."""
        import torch

        from rl.policy.vision_tower import encode_videos

        self._visual.patch_embed = self._embeds[mode]
        with torch.inference_mode():
            encode_videos(self._visual, [packed])

    def peak_bytes(self, mode: str, packed: Any) -> int:
        """The most bytes of tensors alive during one pass, the block's patches included, weights not."""
        from rl.encode_stats.peak_memory import PeakMemory

        self._visual.patch_embed = self._embeds[mode]
        with PeakMemory([*self._visual.parameters(), *self._visual.buffers()]) as memory:
            self.encode(mode, packed)
        return memory.peak_bytes


def encode_stats(
    paths: Sequence[Path],
    rates: Sequence[float],
    geometry_name: str,
    limits: EncodeLimits,
    console: Console,
    *,
    measure: bool | None = None,
    repeats: int = 3,
) -> EncodeReport:
    """Decode, cut and encode the start of every clip at every rate in every mode.

    Args:
        paths: files, and folders to be searched with all that is in them.
        rates: frames per second.
        geometry_name: tiny, qwen2.5-vl-3b, or a checkpoint's folder.
        measure: run a vision tower of that size, or only count; None: run it if it is small.
        repeats: of each measurement of seconds.
    Raises:
        ConfigError: no such geometry, or not one readable video among the paths.
    """
    vision, geometry = _geometry(geometry_name)
    if measure is None:
        measure = geometry.parameters <= MEASURED_PARAMETERS
    videos, skipped = find_videos(paths)
    processors = _processors(geometry, limits)
    tower = Tower(vision, MODES) if measure and videos else None
    rows: list[EncodeRow] = []
    with (
        VideoReader(timeout_s=limits.decode_timeout_s, workers=1, frame_cache_bytes=0) as reader,
        counted_stage(console, f"encoding {len(videos):,} videos", len(videos) * len(rates)) as encoding,
    ):
        for number, video in enumerate(videos, start=1):
            try:
                clip = reader.describe(str(video))
                for fps in rates:
                    rows += _rows(clip, fps, reader, limits, geometry, processors, tower, repeats)
                    encoding.advance()
            except VideoError as error:
                rows = [row for row in rows if row.block.clip != str(video)]  # a clip is compared whole or not at all
                skipped.append(Skipped(str(video), f"{error.problem}; {error.remedy}"))
            encoding.update(number * len(rates))  # also where a clip ended early
    if not rows:
        why = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:3]) or "the folders are empty"
        raise ConfigError(f"not one readable video among {', '.join(map(str, paths))} ({why})")
    return EncodeReport(
        geometry_name,
        geometry.parameters,
        limits.max_seconds,
        limits.max_frames,
        limits.max_pixels,
        tuple(rows),
        tuple(skipped),
    )


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
    """Files as named, then what lies in folders, sorted, each file once; the rest with the reason."""
    found: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    for path in paths:
        if path.is_file():
            found.setdefault(path.resolve(), path)
        elif path.is_dir():
            for file in _files_in(path, skipped):
                if file.suffix.lower() in VIDEO_SUFFIXES:
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


def _geometry(name: str) -> tuple[Mapping[str, Any], VisionGeometry]:
    """The `vision_config` a name stands for, and what of it costs.

    Raises:
        ConfigError: unknown, or not a checkpoint's folder.
    """
    if name == "tiny":
        from rl.policy.tiny import vision_section

        vision: Mapping[str, Any] = vision_section(TinyPolicyConfig())
    elif name == "qwen2.5-vl-3b":
        vision = QWEN2_5_VL_3B
    elif Path(name).is_dir():
        try:
            vision = read_vision_config(name)
            return vision, VisionGeometry.of(vision)
        except PolicyFilesError as error:
            raise ConfigError(f"--geometry {name}: {error}") from error
    else:
        raise ConfigError(f"--geometry must be tiny, qwen2.5-vl-3b or a checkpoint's folder, got {name!r}")
    return vision, VisionGeometry.of(vision)


def _processors(geometry: VisionGeometry, limits: EncodeLimits) -> dict[str, Processor]:
    """One per mode; no text goes through them, so any tokenizer will do.

    Raises:
        ConfigError: frames would have to be smaller than a merged block.
    """
    from rl.policy.tiny import train_tokenizer

    unit = geometry.patch * geometry.merge
    if limits.max_pixels < unit * unit:
        raise ConfigError(f"--max-pixels must be at least {unit * unit} ({unit} x {unit}), got {limits.max_pixels}")
    tokenizer = train_tokenizer(VOCABULARY)
    shape = Geometry(geometry.patch, geometry.merge, tokens_per_second=2, vocab_size=VOCABULARY)
    return {mode: Processor(tokenizer, shape, scenes, Path()) for mode, scenes in MODES.items()}


def _rows(
    clip: VideoIndex,
    asked_fps: float,
    reader: VideoReader,
    limits: EncodeLimits,
    geometry: VisionGeometry,
    processors: Mapping[str, Processor],
    tower: Tower | None,
    repeats: int,
) -> list[EncodeRow]:
    """One clip at one rate in every mode.

    Raises:
        VideoError: the clip cannot be decoded.
    """
    times_s, fps = block_times(clip.duration_s, clip.native_fps, asked_fps, limits.max_seconds, limits.max_frames)
    size = next(iter(processors.values())).fit(clip.height, clip.width, limits.max_pixels)
    decodes = [_timed(lambda: reader.frames(clip.path, times_s, size), _with_children) for _ in range(repeats)]
    (pixels_THWC, shown_s, _), _ = decodes[-1]
    decode_s = Measured(tuple(seconds for _, seconds in decodes))
    cuts = {mode: segment_scenes(pixels_THWC, scenes) for mode, scenes in MODES.items()}  # compiles
    frames = {mode: Frames(pixels_THWC, shown_s, lengths, *size, digest="") for mode, lengths in cuts.items()}
    packed = {mode: processors[mode].pack(frames[mode]) for mode in frames} if tower else {}
    peaks = {mode: tower.peak_bytes(mode, packed[mode]) for mode in packed} if tower else {}
    segment_s = _interleaved(lambda mode: segment_scenes(pixels_THWC, MODES[mode]), frames, repeats)
    encode_s = _interleaved(lambda mode: tower.encode(mode, packed[mode]), packed, repeats)
    return [
        EncodeRow(
            Block(
                clip.path,
                asked_fps,
                fps,
                mode,
                *size,
                cuts[mode],
                processor.geometry.clock(frames[mode]).tokens_per_scene,
            ),
            encode_flops(geometry, MODES[mode], cuts[mode], size[0] // geometry.patch, size[1] // geometry.patch).total,
            decode_s,
            segment_s[mode],
            EncoderCost(encode_s[mode], peaks[mode]) if tower else None,
        )
        for mode, processor in processors.items()
    ]


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
