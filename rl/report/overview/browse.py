"""Predictions of one evaluation by several runs, question by question: filtered, sorted, a page at a time.

Legend: R runs, in the order in which they were chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rl.report.overview.predictions import Predictions, Question, Row

PAGE = 20  # questions
SHOWN_TEXT = 4_000  # characters of what a policy wrote, in the list
MOST_TYPES = 60
SORTS = ("wrong", "right", "spread", "order")
LOOKS = ("", "with", "without", "malformed", "refused", "problem")
NO_VALUE = -1.0  # of what has no prediction or no score: worse than any that is wrong


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for."""

    metric: str = ""  # empty: the headline
    type: str = ""  # of question; empty: all
    look: str = ""  # one of LOOKS, of any of the runs
    text: str = ""  # in the task's name, the question, an answer, or what was written
    sort: str = "wrong"  # one of SORTS
    offset: int = 0  # questions passed over


def browse(found_R: Sequence[Predictions], query: Query) -> dict[str, Any]:
    """A page of questions, each with what every run said to it.

    Returns:
        {metric, metrics, total, matching, offset, types, rows, runs: R × {benchmark, done, is_done, broken, reason}}
    """
    metrics = sorted({name for found in found_R for name in found.metrics})
    metric = query.metric if query.metric in metrics else _headline(found_R, metrics)
    tasks: dict[str, int] = {}
    for found in found_R:
        for task, row in found.rows.items():
            tasks.setdefault(task, row.index)
    entries = [_Entry(task, index, found_R, metric) for task, index in tasks.items()]
    matching = [entry for entry in entries if entry.matches(query)]
    matching.sort(key=lambda entry: entry.sort_key(query.sort))
    offset = max(0, min(query.offset, len(matching)))
    return {
        "metric": metric,
        "metrics": metrics,
        "total": len(entries),
        "matching": len(matching),
        "offset": offset,
        "types": _types(entries, len(found_R)),
        "rows": [entry.described() for entry in matching[offset : offset + PAGE]],
        "runs": [
            {
                "benchmark": found.benchmark,
                "answered": len(found.rows),
                "is_done": found.is_done,
                "has_questions": bool(found.questions),
                "broken": found.broken,
                "reason": found.reason,
            }
            for found in found_R
        ],
    }


class _Entry:
    """A question, and the runs' predictions."""

    def __init__(self, task: str, index: int, found_R: Sequence[Predictions], metric: str) -> None:
        self.task, self.index = task, index
        self.rows_R: list[Row | None] = [found.rows.get(task) for found in found_R]
        self.known = [row for row in self.rows_R if row is not None]
        self.asked = next((found.questions[task] for found in found_R if task in found.questions), Question())
        self.values_R = [
            None if row is None or (row.problem and metric not in row.metrics) else row.metrics.get(metric)
            for row in self.rows_R
        ]

    @property
    def type(self) -> str:
        return self.known[0].type

    def matches(self, query: Query) -> bool:
        if query.type and self.type != query.type:
            return False
        if query.look and not any(_looked(row, query.look) for row in self.known):
            return False
        words = query.text.casefold()
        return not words or any(words in text.casefold() for text in self._texts())

    def sort_key(self, sort: str) -> tuple:
        if sort == "order":
            return (self.index, self.task)
        values = [
            NO_VALUE if value is None else value
            for value, row in zip(self.values_R, self.rows_R, strict=True)
            if row is not None
        ]
        if sort == "spread":
            return (min(values) - max(values), self.index, self.task)
        return (fmean(values) * (-1 if sort == "right" else 1), self.index, self.task)

    def described(self) -> dict[str, Any]:
        durations = [row.duration_s for row in self.known if row.duration_s]
        return {
            "task": self.task,
            "index": self.index,
            "type": self.type,
            "duration_s": durations[0] if durations else None,
            **{key: value for key, value in asdict(self.asked).items() if key != "video"},
            "has_video": bool(self.asked.video),
            "runs": [
                None if row is None else _described(row, value)
                for row, value in zip(self.rows_R, self.values_R, strict=True)
            ],
        }

    def _texts(self) -> list[str]:
        return [self.task, self.asked.question, self.asked.answer] + [
            text for row in self.known for text in (row.answer or "", row.text)
        ]


def _described(row: Row, value: float | None) -> dict[str, Any]:
    return {
        "value": value,
        "answer": row.answer,
        "calls": row.calls,
        "text": row.text[:SHOWN_TEXT],
        "is_cut": len(row.text) > SHOWN_TEXT,
        "stop": row.stop,
        "problem": row.problem,
        "metrics": row.metrics,
    }


def _looked(row: Row, look: str) -> bool:
    if look == "problem":
        return bool(row.problem)
    granted = any("granted" in call for call in row.calls)
    if look in ("with", "without"):
        return granted == (look == "with")
    return any(call.get("refusal") == look for call in row.calls)


def _headline(found_R: Sequence[Predictions], metrics: Sequence[str]) -> str:
    told = next((found.headline for found in found_R if found.headline in metrics), "")
    return told or next((name for name in metrics if "acc" in name), metrics[0] if metrics else "")


def _types(entries: Sequence[_Entry], runs: int) -> list[dict[str, Any]]:
    """Of each kind of question: how many there are, and every run's mean over those with a value."""
    by_type: Mapping[str, list[_Entry]] = defaultdict(list)
    for entry in entries:
        by_type[entry.type].append(entry)
    return [
        {
            "type": name,
            "count": len(part),
            "means": [
                fmean(values) if (values := [v for entry in part if (v := entry.values_R[run]) is not None]) else None
                for run in range(runs)
            ],
        }
        for name, part in sorted(by_type.items())[:MOST_TYPES]
    ]
