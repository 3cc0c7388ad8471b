"""What held-out episodes looked at, and what that cost: a run's greedy evaluations, episode by episode.

Legend: T frames of a look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

from benchmarks.density.runs import FinishedRun, records, world_of
from envs.synthetic.world import world_rows

SAME_TIME_S = 1e-3  # records round times to thousandths


@dataclass(frozen=True, slots=True)
class Look:
    """One granted call."""

    fps: float  # granted
    window_s: float
    frames: int
    scenes: int
    shows_detail: bool


@dataclass(frozen=True, slots=True)
class Episode:
    """One held-out task, answered greedily."""

    needed_fps: float
    looks: tuple[Look, ...]
    is_right: bool
    visual_tokens: int  # of all video blocks, coarse frames too
    prompt_tokens: int  # all that the policy was given: visual, times, question, notes
    look_tokens: int  # what came after the question: the looks' blocks, and notes
    written_tokens: int

    @property
    def frames(self) -> int:
        """Inserted by all looks."""
        return sum(look.frames for look in self.looks)

    @property
    def asked_fps(self) -> float | None:
        """The rate of the last look, upon which the answer was given; None: it did not look."""
        return self.looks[-1].fps if self.looks else None

    @property
    def shows_detail(self) -> bool:
        """Whether any of its looks does."""
        return any(look.shows_detail for look in self.looks)


def episodes(run: FinishedRun, evaluation: int) -> list[Episode]:
    """Of one evaluation of a run: 0 is before any reinforcement learning, -1 the last."""
    rows = {_video(row["video"]): row for row in world_rows(world_of(run.config), "held_out")}
    found = records(run.evaluations[evaluation])
    return [_episode(record, rows[_video(record["task"]["video"])]) for record in found]


def _video(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _episode(record: Mapping[str, Any], row: Mapping[str, Any]) -> Episode:
    turns, coarse = record["turns"], record["coarse_frames"]
    looks = tuple(_look(call, frames, row) for call, frames in _granted(turns))
    scenes = len(coarse["scene_lengths"]) + sum(look.scenes for look in looks)
    return Episode(
        needed_fps=row["fps"],
        looks=looks,
        is_right=record["rewards"].get("terms", {}).get("answer") == 1.0,
        visual_tokens=scenes * _tokens_per_scene(coarse),
        prompt_tokens=sum(turn["context_tokens"] for turn in turns),
        look_tokens=sum(turn["context_tokens"] for turn in turns[1:]),
        written_tokens=sum(turn["sampled_tokens"] for turn in turns),
    )


def _granted(turns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Granted calls and the frames that they inserted, which stand at the turn after; the last may have got none."""
    for turn, after in pairwise(turns):
        if turn["call"] is not None and "frames" in turn["call"]:
            yield turn["call"], after["frames"]


def _look(call: Mapping[str, Any], frames: Mapping[str, Any], row: Mapping[str, Any]) -> Look:
    times_s_T = frames["timestamps_s"]
    start_s, end_s = call["granted_s"]
    return Look(
        fps=call["granted_fps"],
        window_s=end_s - start_s,
        frames=len(times_s_T),
        scenes=len(frames["scene_lengths"]),
        shows_detail=any(
            first_s - SAME_TIME_S <= time_s < last_s - SAME_TIME_S
            for first_s, last_s, _ in row["flashes_s"]
            for time_s in times_s_T
        ),
    )


def _tokens_per_scene(frames: Mapping[str, Any]) -> int:
    """Of the tiny Qwen2.5-VL: 14 pixels a patch, two by two of them a token."""
    return frames["height"] // 28 * (frames["width"] // 28)


def rate_by_need(found: Sequence[Episode]) -> dict[float, float]:
    """Needed rate -> geometric mean of the rates that were looked at, over the episodes that looked."""
    by_need: dict[float, list[float]] = {}
    for episode in found:
        if episode.asked_fps is not None:
            by_need.setdefault(episode.needed_fps, []).append(math.log(episode.asked_fps))
    return {need: math.exp(fmean(logs)) for need, logs in sorted(by_need.items())}


def right_by_need(found: Sequence[Episode]) -> dict[float, float]:
    """Needed rate -> share of right answers."""
    by_need: dict[float, list[bool]] = {}
    for episode in found:
        by_need.setdefault(episode.needed_fps, []).append(episode.is_right)
    return {need: fmean(right) for need, right in sorted(by_need.items())}


def measures(found: Sequence[Episode]) -> dict[str, float]:
    """Everything that a table shows of one evaluation. A share or mean over nothing is nan."""
    looked = [episode for episode in found if episode.asked_fps is not None]
    looks = [look for episode in found for look in episode.looks]
    right = sum(episode.is_right for episode in found)
    pairs = [(math.log2(episode.needed_fps), math.log2(episode.asked_fps)) for episode in looked]
    return {
        "accuracy": right / len(found),
        "looks": len(looks) / len(found),
        "looks that show it": _mean([look.shows_detail for look in looks]),
        "episodes that show it": _mean([episode.shows_detail for episode in found]),
        "frames": _mean([episode.frames for episode in found]),
        "frames per right answer": _ratio(sum(episode.frames for episode in found), right),
        "prompt tokens": _mean([episode.prompt_tokens for episode in found]),
        "visual tokens": _mean([episode.visual_tokens for episode in found]),
        "look tokens": _mean([episode.look_tokens for episode in found]),
        "written tokens": _mean([episode.written_tokens for episode in found]),
        "tokens per right answer": _ratio(sum(e.prompt_tokens + e.written_tokens for e in found), right),
        "asked / needed": 2 ** _mean([asked - needed for needed, asked in pairs]),
        "octaves off": _mean([abs(asked - needed) for needed, asked in pairs]),
        "enough": _mean([asked >= needed - 1e-9 for needed, asked in pairs]),
        "slope": _slope(pairs),
        "window s": _mean([look.window_s for look in looks]),
    }


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Of the asked rate over the needed one, both as logarithms: 0 heeds the cue not at all, 1 in full."""
    if len({needed for needed, _ in pairs}) < 2:
        return math.nan
    return linear_regression(*zip(*pairs, strict=True)).slope


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan
