"""The predictions of one evaluation: what eval/NAME holds, whole or still growing, with the questions asked.

Nothing here raises for a damaged file: a broken line costs that line, and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.report.build import file_state
from rl.report.run_files import Broken, finite, read_json_lines, read_object

EVALUATIONS, PREDICTIONS, METRICS, EXAMPLES = "eval", "predictions.jsonl", "metrics.json", "examples.json"
MOST_TEXT, MOST_SHORT, MOST_WINDOWS, MOST_CALLS = 20_000, 400, 50, 50  # of one example that are shown
MOST_EVALUATIONS = 200  # of a run

Span = tuple[float, float]  # seconds


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, and where its answer lies."""

    question: str = ""
    answer: str = ""
    options: tuple[str, ...] = ()
    windows_s: tuple[Span, ...] = ()  # annotated evidence
    video: str = ""  # path


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction."""

    task: str
    index: int  # of the example in the benchmark
    type: str  # the example's group: a kind of question, a length of video
    metrics: Mapping[str, float]
    answer: str | None
    calls: tuple[Mapping[str, Any], ...]  # {asked, granted, fps, frames} or {refusal, reason}
    text: str
    stop: str
    problem: str  # why there is no prediction, or no score; empty: there are both
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """An evaluation as far as it has come."""

    benchmark: str
    headline: str  # the metric to look at first; empty: not known
    rows: Mapping[str, Row]  # by task
    questions: Mapping[str, Question]  # by task; of an evaluation of 0.4.0 there are none
    is_done: bool
    broken: int = 0  # lines and files
    reason: str = ""  # of the first
    metrics: tuple[str, ...] = field(default=())  # names


class PredictionCache:
    """Predictions of evaluations; files that did not change are not read again. The least recently used make room."""

    def __init__(self, most: int = 24) -> None:
        self._known: dict[Path, tuple[tuple, Predictions]] = {}
        self._most = most

    def get(self, folder: Path) -> Predictions:
        """Those of a folder eval/NAME."""
        state = tuple(file_state(folder / name) for name in (PREDICTIONS, METRICS, EXAMPLES))
        known = self._known.pop(folder, None)
        if known is None or known[0] != state:
            known = state, read_predictions(folder)
        self._known[folder] = known
        while len(self._known) > self._most:
            self._known.pop(next(iter(self._known)))
        return known[1]


def evaluation_names(run: Path) -> list[str]:
    """The evaluations of a run that have any predictions, by name."""
    try:
        folders = sorted((run / EVALUATIONS).iterdir())
    except OSError:
        return []
    return [folder.name for folder in folders if (folder / PREDICTIONS).is_file()][:MOST_EVALUATIONS]


def read_predictions(folder: Path) -> Predictions:
    """Read an evaluation. Of an example that was rolled out again, the last line counts."""
    rows: dict[str, Row] = {}
    broken = []
    for line, number in read_json_lines(folder / PREDICTIONS, folder):
        if isinstance(line, Broken):
            broken.append(line)
            continue
        try:
            row = _row(line)
            rows[row.task] = row
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = f"no {error.args[0]!r} in it" if isinstance(error, KeyError) else str(error)[:160]
            broken.append(Broken(f"{PREDICTIONS}:{number}", f"is not a prediction ({reason})"))
    if broken and broken[-1].place.endswith(f":{_count_lines(folder / PREDICTIONS) + 1}"):
        broken.pop()  # half a line: its example is written at this moment
    metrics, bad_metrics = _object(folder / METRICS)
    suite, bad_suite = _object(folder / EXAMPLES)
    questions, bad_questions = _questions(suite)
    broken += [*bad_metrics, *bad_suite, *bad_questions]
    return Predictions(
        benchmark=str(metrics.get("benchmark") or suite.get("benchmark") or folder.name)[:MOST_SHORT],
        headline=str(metrics.get("headline") or suite.get("headline") or "")[:MOST_SHORT],
        rows=rows,
        questions=questions,
        is_done=bool(metrics),
        broken=len(broken),
        reason=f"{broken[0].place} {broken[0].reason}" if broken else "",
        metrics=tuple(sorted({name for row in rows.values() for name in row.metrics})),
    )


def _row(line: Mapping[str, Any]) -> Row:
    answer, problem = line["answer"], line.get("missing") or line.get("failed") or ""
    return Row(
        task=str(line["task_id"]),
        index=int(line["index"]),
        type=str(line["group"])[:MOST_SHORT],
        metrics={str(name): number for name, value in line["metrics"].items() if (number := finite(value)) is not None},
        answer=None if answer is None else str(answer)[:MOST_SHORT],
        calls=tuple(_call(call) for call in line.get("calls", ())[:MOST_CALLS]),
        text=str(line["text"])[:MOST_TEXT],
        stop=str(line["stop"])[:MOST_SHORT],
        problem=str(problem)[:MOST_SHORT],
        duration_s=finite(line.get("duration_s")),
    )


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    for kind in ("malformed", "refused"):
        if kind in call:
            return {"refusal": kind, "reason": str(call[kind])[:MOST_SHORT]}
    granted = call["granted_s"]
    if granted is None:  # of a tool that looks at no part of the clip
        return {"refusal": str(call["tool"])[:MOST_SHORT], "reason": ""}
    return {
        "asked": _span(call.get("asked_s", granted)),
        "granted": _span(granted),
        "fps": finite(call.get("granted_fps")),
        "frames": int(call.get("frames", 0)),
    }


def _span(span: Any) -> Span:
    start_s, end_s = (finite(bound) for bound in span)
    if start_s is None or end_s is None:
        raise ValueError(f"{span} is no window in seconds")
    return start_s, end_s


def _questions(suite: Mapping[str, Any]) -> tuple[dict[str, Question], list[Broken]]:
    found: dict[str, Question] = {}
    broken = []
    examples = suite.get("examples", ())
    for example in examples if isinstance(examples, list) else ():
        try:
            found[str(example["task_id"])] = Question(
                question=str(example["question"])[:MOST_TEXT],
                answer=str(example["answer"])[:MOST_SHORT],
                options=tuple(str(option)[:MOST_SHORT] for option in example.get("options", ())[:MOST_WINDOWS]),
                windows_s=tuple(_span(window) for window in example.get("windows_s", ())[:MOST_WINDOWS]),
                video=str(example.get("video", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            broken.append(Broken(EXAMPLES, "holds something that is no question"))
    return found, broken


def _object(path: Path) -> tuple[dict[str, Any], list[Broken]]:
    if not path.exists():
        return {}, []
    found = read_object(path, path.name)
    return ({}, [found]) if isinstance(found, Broken) else (found, [])


def _count_lines(path: Path) -> int:
    """Whole ones."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    except OSError:
        return 0
