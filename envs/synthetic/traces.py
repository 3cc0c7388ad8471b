"""Supervised traces for the quickstart world: looks that are roughly right, answers that say what they show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.synthetic.dots import jittered_zoom, shown_dot

LETTERS = "ABCD"
BLIND = "I see nothing."
WARMTH = {"red": "warm", "yellow": "warm", "green": "cold", "blue": "cold"}


@dataclass(frozen=True, slots=True)
class Errors:
    """By how much the looks of traces are off, and how often they misread what they show."""

    window_jitter_s: float  # either end, either way
    window_shift_s: float  # both ends, too early
    fps_jitter: int
    misread: float  # share
    box_jitter: float = 0.0  # of each side of a zoom's box, thousandths of a frame
    zooms: bool = True  # else details of kind dot are looked for like others


def cold_start_traces(
    rows: Iterable[dict[str, Any]],
    window_jitter_s: float,
    fps_jitter: int,
    seed: int,
    traces_per_row: int = 1,
    looks: int = 1,
    look_frames: int = 0,
    window_shift_s: float = 0.0,
    misread: float = 0.0,
    box_jitter: float = 80.0,
    zooms: bool = True,
) -> list[dict[str, Any]]:
    """Supervised traces (DM-CoT, ShareGPT) that look roughly where and as densely as they should.

    Window ends move by up to `window_jitter_s`, the rate by up to `fps_jitter`: in a world that lists its details'
    rates to another of these, all as likely, so that with a large jitter no rate tells of the detail's. The answer is
    what the frames so obtained show, and an honest guess, a random letter, where they show nothing: better looks are
    left to be learned.

    Args:
        rows: rows of `train.jsonl`.
        looks: of a trace, at most: who has seen nothing looks again, more densely where rates are listed.
        look_frames: of one look, at most, as in `shown_answer`.
        window_shift_s: by which windows come too early, beside the jitter: an error that taking the mean does not undo.
        box_jitter: by which each side of a zoom's box moves at most, in thousandths of the frame; of kind dot.
        zooms: rows of kind dot are zoomed into; else looked at, which shows nothing, so that answers are guesses.
        misread: share of the traces that saw something and take it for the next choice in alphabetical order.
    """
    rng = np.random.default_rng([seed, 7])
    repeated = itertools.chain.from_iterable(itertools.repeat(row, traces_per_row) for row in rows)
    errors = Errors(window_jitter_s, window_shift_s, fps_jitter, misread, box_jitter, zooms)
    return [_trace(index, row, errors, looks, look_frames, rng) for index, row in enumerate(repeated)]


def shown_answer(row: dict[str, Any], start_s: float, end_s: float, fps: float, look_frames: int = 0) -> str | None:
    """What frames over a window say about the row's question (a choice, e.g. "red" or "2"), or None if nothing.

    Frame times are those of a retrieval call: floor(window * fps) of them, in centiseconds, at `start + i / fps`.

    Args:
        look_frames: beyond so many, the spacing widens over the window; 0: never.
    """
    if row["kind"] == "dot":  # its colour is in no frame of a look
        return None
    num_frames = max(1, int(round((end_s - start_s) * 100) * fps / 100 + 1e-9))
    if look_frames and num_frames > look_frames:
        times_cs = [100 * (start_s + i * (end_s - start_s) / look_frames) for i in range(look_frames)]
    else:
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
    index: int, row: dict[str, Any], errors: Errors, looks: int, look_frames: int, rng: np.random.Generator
) -> dict[str, Any]:
    written, shown, fps = [], None, 0.0
    while len(written) < looks and shown is None:
        if row["kind"] == "dot" and errors.zooms:
            time_s, box = jittered_zoom(row, errors.window_jitter_s, errors.box_jitter, rng)
            shown = shown_dot(row, time_s, box)
            sides = " ".join(f"{side:g}" for side in box)
            written.append(f"Look closer.<zoom>{time_s:g}</zoom><box>{sides}</box><video>")
            continue
        start_s, end_s = _wrong_window(row, errors, rng)
        fps = _jittered_rate(row, errors.fps_jitter, fps, rng)
        shown = shown_answer(row, start_s, end_s, fps, look_frames)
        written.append(f"Look closer.<span>{_written(start_s)} - {_written(end_s)}</span><fps>{fps:g}</fps><video>")
    if shown is not None and errors.misread and rng.random() < errors.misread:
        choices = sorted(row["options"])
        shown = choices[(choices.index(shown) + 1) % len(choices)]
    letter = (
        LETTERS[row["options"].index(shown)]
        if shown is not None
        else str(rng.choice(list(LETTERS[: len(row["options"])])))
    )
    thought = f"I see {shown}." if shown is not None else BLIND
    look = BLIND.join(written)
    return {
        "index": index,
        "video": [row["video"]],
        "conversations": [
            {"from": "human", "value": row["prompt"]},
            {"from": "gpt", "value": f"<think>{look}{thought}</think><answer>{letter}</answer>"},
        ],
    }


def _jittered_rate(row: dict[str, Any], jitter: int, last_fps: float, rng: np.random.Generator) -> float:
    """A rate up to `jitter` from the needed one; of listed rates one above the last look's, if there is one."""
    if "rates_fps" not in row:
        return int(np.clip(row["fps"] + rng.integers(-jitter, jitter + 1), 1, row["native_fps"]))
    near = [fps for fps in row["rates_fps"] if abs(fps - row["fps"]) <= jitter]
    return float(rng.choice([fps for fps in near if fps > last_fps] or near[-1:]))


def _wrong_window(row: dict[str, Any], errors: Errors, rng: np.random.Generator) -> tuple[float, float]:
    """Both ends moved, by the shift together and by the jitter independently: to tenths of a second, in the clip and at
    least half a second apart.

    Where tenths do not fit (a clip that ends at 7.25 s, a window in a clip of a second), times are the clip's own.
    """
    jitter_2 = rng.uniform(-errors.window_jitter_s, errors.window_jitter_s, size=2)
    moved_s = np.array([row["gt_span_start"], row["gt_span_end"]]) + jitter_2 - errors.window_shift_s
    ends_s = math.floor(row["duration_s"] * 100 + 1e-6) / 100
    start_s, end_s = np.minimum(np.round(np.clip(moved_s, 0, ends_s), 1), ends_s)
    if end_s - start_s < 0.5:
        start_s, end_s = round(row["gt_span_start"], 2), min(round(row["gt_span_end"], 2), ends_s)
    return float(start_s), float(end_s)


def _written(time_s: float) -> str:
    """A time in tenths of a second, or in hundredths where it is between two tenths."""
    return f"{time_s:.1f}" if abs(round(time_s, 1) - time_s) < 1e-6 else f"{time_s:.2f}"
