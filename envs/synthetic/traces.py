"""Supervised traces for the quickstart world: looks that are roughly right, answers that say what they show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

LETTERS = "ABCD"
WARMTH = {"red": "warm", "yellow": "warm", "green": "cold", "blue": "cold"}


def cold_start_traces(
    rows: Iterable[dict[str, Any]],
    window_jitter_s: float,
    fps_jitter: int,
    seed: int,
    traces_per_row: int = 1,
) -> list[dict[str, Any]]:
    """Supervised traces (DM-CoT, ShareGPT) that look roughly where and as densely as they should.

    Window ends move by up to `window_jitter_s`, the rate by up to `fps_jitter`. The answer is what the frames so
    obtained show, and an honest guess, a random letter, where they show nothing: better looks are left to be learned.

    Args:
        rows: rows of `train.jsonl`.
    """
    rng = np.random.default_rng([seed, 7])
    repeated = itertools.chain.from_iterable(itertools.repeat(row, traces_per_row) for row in rows)
    return [_trace(index, row, window_jitter_s, fps_jitter, rng) for index, row in enumerate(repeated)]


def shown_answer(row: dict[str, Any], start_s: float, end_s: float, fps: float) -> str | None:
    """What frames over a window say about the row's question (a choice, e.g. "red" or "2"), or None if nothing.

    Frame times are those of a retrieval call: floor(window * fps) of them, in centiseconds, at `start + i / fps`.
    """
    num_frames = max(1, int(round((end_s - start_s) * 100) * fps / 100 + 1e-9))
    times_cs = [round(start_s * 100) + int(100 * i / fps) for i in range(num_frames)]
    seen = []
    for start, end, colour in row["flashes_s"]:
        if any(start - 1e-6 <= time_cs / 100 < end - 1e-6 for time_cs in times_cs):
            seen.append(colour)
    if not seen:
        return None
    match row["kind"]:
        case "count":
            return str(len(seen))
        case "warmth":
            return WARMTH[seen[0]]
        case _:
            return seen[0]


def _trace(
    index: int, row: dict[str, Any], window_jitter_s: float, fps_jitter: int, rng: np.random.Generator
) -> dict[str, Any]:
    start_s, end_s = _jittered_window(row, window_jitter_s, rng)
    fps = int(np.clip(row["fps"] + rng.integers(-fps_jitter, fps_jitter + 1), 1, row["native_fps"]))
    shown = shown_answer(row, start_s, end_s, fps)
    letter = (
        LETTERS[row["options"].index(shown)]
        if shown is not None
        else str(rng.choice(list(LETTERS[: len(row["options"])])))
    )
    thought = f"I see {shown}." if shown is not None else "I see nothing."
    look = f"Look closer.<span>{_written(start_s)} - {_written(end_s)}</span><fps>{fps}</fps><video>"
    return {
        "index": index,
        "video": [row["video"]],
        "conversations": [
            {"from": "human", "value": row["prompt"]},
            {"from": "gpt", "value": f"<think>{look}{thought}</think><answer>{letter}</answer>"},
        ],
    }


def _jittered_window(row: dict[str, Any], jitter_s: float, rng: np.random.Generator) -> tuple[float, float]:
    """Both ends moved independently, to tenths of a second, inside the clip and at least half a second apart.

    Where tenths do not fit (a clip that ends at 7.25 s, a window in a clip of a second), times are the clip's own.
    """
    moved_s = np.array([row["gt_span_start"], row["gt_span_end"]]) + rng.uniform(-jitter_s, jitter_s, size=2)
    ends_s = math.floor(row["duration_s"] * 100 + 1e-6) / 100
    start_s, end_s = np.minimum(np.round(np.clip(moved_s, 0, ends_s), 1), ends_s)
    if end_s - start_s < 0.5:
        start_s, end_s = round(row["gt_span_start"], 2), min(round(row["gt_span_end"], 2), ends_s)
    return float(start_s), float(end_s)


def _written(time_s: float) -> str:
    """A time in tenths of a second, or in hundredths where it is between two tenths."""
    return f"{time_s:.1f}" if abs(round(time_s, 1) - time_s) < 1e-6 else f"{time_s:.2f}"
