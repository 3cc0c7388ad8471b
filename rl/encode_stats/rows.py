"""What encoding a clip costs, per frame rate and way of cutting it into scenes: FlexiVideo's ablation, as numbers.

    Block (a clip's frames, cut in one mode) -> EncodeRow (with its cost) -> Total (over all clips)

Legend: T frames · K scenes.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rl.config.policy import ScenesConfig

MODES: Mapping[str, ScenesConfig] = {
    "fixed2": ScenesConfig(mode="fixed"),  # stock pairs: what the others are compared with
    "fixed6": ScenesConfig(mode="fixed6"),
    "dynamic_literal": ScenesConfig(budget="none"),  # the paper's rule as it is written
    "dynamic_budget": ScenesConfig(budget="pairs", difference_scale=4),  # never more scenes than pairs, noise-proof
    "dynamic_adaptive": ScenesConfig(budget="none", threshold="adaptive"),  # literal, above the block's noise floor
}
OWN_MODE = "policy"  # as a policy's folder says that it was made to
REFERENCE = "fixed2"
BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, None))  # scene lengths, in frames, as they are shown
NO_VIDEO_NAME = "not a video by its name"  # begins the reason of files that are not even tried


@dataclass(frozen=True, slots=True)
class Block:
    """The frames of a clip that are encoded, and how one mode cuts them."""

    clip: str  # path
    asked_fps: float
    fps: float  # granted: never more than the clip has
    mode: str  # a key of MODES, or OWN_MODE
    height: int  # pixels of a frame, as encoded
    width: int
    scene_lengths: tuple[int, ...]  # frames; they sum to T
    tokens_per_scene: int

    @property
    def num_frames(self) -> int:
        """T."""
        return sum(self.scene_lengths)

    @property
    def num_scenes(self) -> int:
        """K."""
        return len(self.scene_lengths)

    @property
    def num_pairs(self) -> int:
        """ceil(T / 2): the scenes of fixed pairs."""
        return math.ceil(self.num_frames / 2)

    @property
    def visual_tokens(self) -> int:
        """What the language model gets to read."""
        return self.num_scenes * self.tokens_per_scene


@dataclass(frozen=True, slots=True)
class Measured:
    """One quantity, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the repeats."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class EncoderCost:
    """Of really encoding a block on this machine."""

    seconds: Measured  # CPU seconds of one thread
    peak_bytes: int  # of tensors alive at once, input included, weights not


@dataclass(frozen=True, slots=True)
class EncodeRow:
    """A block and what it costs."""

    block: Block
    flops: int  # counted
    decode_s: Measured  # CPU seconds; one decode serves all modes
    segment_s: Measured
    encoder: EncoderCost | None  # None: counted only, no tower of this size was run


@dataclass(frozen=True, slots=True)
class Total:
    """All clips at one rate in one mode."""

    asked_fps: float
    mode: str
    clips: int
    num_frames: int
    num_scenes: int
    num_pairs: int
    visual_tokens: int
    reference_tokens: int  # of fixed pairs, same frames
    histogram: Mapping[int, int]  # scene length in frames -> scenes
    flops: int
    kpixel_per_tflop: float
    decode_s: float
    segment_s: float
    encode_s: float | None
    peak_bytes: int | None  # of the hungriest clip

    @property
    def saving(self) -> float:
        """Share of the pairs' tokens that this mode does without; negative where it takes more."""
        return 1 - self.visual_tokens / self.reference_tokens


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or one rate of it, that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """Everything a run of `dynframe encode-stats` found."""

    geometry: str
    vision_parameters: int
    max_seconds: float
    max_frames: int
    max_pixels: int
    rows: tuple[EncodeRow, ...]
    skipped: tuple[Skipped, ...]
    modes: Mapping[str, ScenesConfig] = field(default_factory=lambda: MODES)


def block_times(duration_s: float, native_fps: float, asked_fps: float, max_seconds: float, max_frames: int):
    """Times of a block from the clip's start, and the rate they are at.

    The rate is clamped to the clip's own, as for a retrieval call; a clip always has one frame.

    Returns:
        (times in seconds, T of them; frames per second)
    """
    fps = min(asked_fps, native_fps) if native_fps > 0 else asked_fps
    num_frames = min(max_frames, max(1, math.floor(min(duration_s, max_seconds) * fps + 1e-6)))
    return tuple(i / fps for i in range(num_frames)), fps


def kpixel_per_tflop(num_frames: int, height: int, width: int, flops: int) -> float:
    """Thousand pixels of encoded frames that 10^12 operations pay for: more is cheaper."""
    return num_frames * height * width / 1e3 / (flops / 1e12)


def histogram_of(scene_lengths: Sequence[int]) -> dict[int, int]:
    """How many scenes there are of each length; lengths times counts sum to T."""
    return dict(sorted(Counter(scene_lengths).items()))


def binned(histogram: Mapping[int, int]) -> dict[str, int]:
    """The histogram over BINS, by name ("1", "2", "3-4", …, "17+"); empty bins included."""
    return {
        _bin_name(low, high): sum(n for length, n in histogram.items() if low <= length <= (high or length))
        for low, high in BINS
    }


def totals(rows: Sequence[EncodeRow]) -> list[Total]:
    """Sum over clips, by rate and mode, in order of appearance. Only clips that have every mode at that rate."""
    groups: dict[tuple[float, str], list[EncodeRow]] = {}
    for row in rows:
        groups.setdefault((row.block.asked_fps, row.block.mode), []).append(row)
    return [_total(fps, mode, members, groups[fps, REFERENCE]) for (fps, mode), members in groups.items()]


def _total(fps: float, mode: str, rows: Sequence[EncodeRow], reference: Sequence[EncodeRow]) -> Total:
    blocks = [row.block for row in rows]
    flops = sum(row.flops for row in rows)
    histogram = Counter()
    for block in blocks:
        histogram.update(block.scene_lengths)
    pixels = sum(block.num_frames * block.height * block.width for block in blocks)
    costs = [row.encoder for row in rows]
    was_run = None not in costs
    return Total(
        asked_fps=fps,
        mode=mode,
        clips=len(rows),
        num_frames=sum(block.num_frames for block in blocks),
        num_scenes=sum(block.num_scenes for block in blocks),
        num_pairs=sum(block.num_pairs for block in blocks),
        visual_tokens=sum(block.visual_tokens for block in blocks),
        reference_tokens=sum(row.block.visual_tokens for row in reference),
        histogram=dict(sorted(histogram.items())),
        flops=flops,
        kpixel_per_tflop=kpixel_per_tflop(pixels, 1, 1, flops),
        decode_s=sum(row.decode_s.median for row in rows),
        segment_s=sum(row.segment_s.median for row in rows),
        encode_s=sum(cost.seconds.median for cost in costs) if was_run else None,
        peak_bytes=max(cost.peak_bytes for cost in costs) if was_run else None,
    )


def as_dict(report: EncodeReport) -> dict[str, Any]:
    """For --json: limits, every row, the sums and what was skipped."""
    limits = {"max_seconds": report.max_seconds, "max_frames": report.max_frames, "max_pixels": report.max_pixels}
    return {
        "geometry": report.geometry,
        "vision_parameters": report.vision_parameters,
        "limits": limits,
        "modes": {mode: asdict(scenes) for mode, scenes in report.modes.items()},
        "rows": [{**flat(row), **_spreads(row)} for row in report.rows],
        "totals": [
            {**asdict(total), "saving": total.saving, "histogram": _text_keys(total.histogram)}
            for total in totals(report.rows)
        ],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }


def flat(row: EncodeRow) -> dict[str, Any]:
    """One row as plain values, the same keys for --csv and --json; null where nothing was measured."""
    block, cost = row.block, row.encoder
    return {
        "clip": block.clip,
        "asked_fps": block.asked_fps,
        "fps": round(block.fps, 3),
        "mode": block.mode,
        "height": block.height,
        "width": block.width,
        "frames": block.num_frames,
        "scenes": block.num_scenes,
        "scenes_per_frame": block.num_scenes / block.num_frames,
        "scenes_per_pair": block.num_scenes / block.num_pairs,
        "visual_tokens": block.visual_tokens,
        "scene_lengths": _text_keys(histogram_of(block.scene_lengths)),
        "tflops": row.flops / 1e12,
        "kpixel_per_tflop": kpixel_per_tflop(block.num_frames, block.height, block.width, row.flops),
        "decode_s": row.decode_s.median,
        "segment_s": row.segment_s.median,
        "encode_s": cost.seconds.median if cost else None,
        "peak_bytes": cost.peak_bytes if cost else None,
    }


class CsvRows:
    """A CSV file that rows are added to as they come: one line per clip, rate and mode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_begun = False

    def add(self, rows: Sequence[EncodeRow]) -> None:
        """Write rows, scene lengths as `1x12 2x3` (twelve of one frame, three of two); they survive a kill.

        The first rows replace what the file held before.
        """
        records = [flat(row) for row in rows]
        for record in records:
            counts = record["scene_lengths"].items()
            record["scene_lengths"] = " ".join(f"{length}x{count}" for length, count in counts)
        with self._path.open("a" if self._has_begun else "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(records[0]))
            if not self._has_begun:
                writer.writeheader()
            writer.writerows(records)
        self._has_begun = True


def labels(clips: Sequence[str]) -> dict[str, str]:
    """A short name for each path: the file's, with as many folders before it as tell it from the others."""
    short = {}
    for clip in dict.fromkeys(clips):
        parts, others = Path(clip).parts, [Path(other).parts for other in clips if other != clip]
        depth = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        short[clip] = str(Path(*parts[-depth:]))
    return short


def _spreads(row: EncodeRow) -> dict[str, list[float] | None]:
    return {
        "decode_s_all": list(row.decode_s.values),
        "segment_s_all": list(row.segment_s.values),
        "encode_s_all": list(row.encoder.seconds.values) if row.encoder else None,
    }


def _text_keys(histogram: Mapping[int, int]) -> dict[str, int]:
    return {str(length): count for length, count in histogram.items()}


def _bin_name(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if low == high else f"{low}-{high}"
