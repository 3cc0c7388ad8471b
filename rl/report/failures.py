"""failures.jsonl for the page: each cause once, texts bounded; a damaged line is listed, not fatal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.report.run_files import Broken, read_json_lines
from rl.tracking.failures import FAILURES, Failure, failure_of

MOST_SHOWN = 100  # causes
CAUSE_CHARS, TRACEBACK_CHARS, TEXT_CHARS = 1_000, 8_100, 2_000  # of each that are shown


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One cause, as the page shows it."""

    kind: str
    cause: str
    count: int
    first_step: int
    last_step: int
    task: str
    group: int
    sibling: int
    traceback: str
    text: str  # what the policy wrote in the first trajectory


def read_failure_rows(run: Path) -> tuple[list[FailureRow], list[Broken]]:
    """The causes of a run, those with the most trajectories first, and the lines that are none."""
    rows, broken = [], []
    path = run / FAILURES
    for line, number in read_json_lines(path, run) if path.exists() else ():
        if isinstance(line, Broken):
            broken.append(line)
            continue
        try:
            rows.append(_row(failure_of(line)))
        except TypeError as error:
            broken.append(Broken(f"{FAILURES}:{number}", f"is not a failure ({str(error)[:160]})"))
    return sorted(rows, key=lambda row: -row.count)[:MOST_SHOWN], broken


def _row(failure: Failure) -> FailureRow:
    return FailureRow(
        kind=failure.kind[:40],
        cause=failure.cause[:CAUSE_CHARS],
        count=failure.count,
        first_step=failure.first_step,
        last_step=failure.last_step,
        task=_text(failure.task, "id")[:CAUSE_CHARS],
        group=failure.group,
        sibling=failure.sibling,
        traceback=failure.traceback[:TRACEBACK_CHARS],
        text=_text(failure.trajectory, "text")[:TEXT_CHARS],
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""
