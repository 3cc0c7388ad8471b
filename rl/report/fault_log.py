"""faults.jsonl for the report: all faults counted, the newest ones listed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.report.run_files import Broken, finite, is_step, read_json_lines
from rl.tracking.faults import FAULTS
from rl.trajectory import WorkerFailure

MOST_FAULTS = 500  # listed, the newest ones; all are counted
MOST_FAULT_STEPS = 10_000  # marked on the curves, the newest ones
MOST_KINDS = 40  # of faults that are named, the most frequent ones
FAULT_TEXT = {"kind": 40, "worker": 60, "cause": 300, "action": 200}  # characters of each that are shown
MOST_LOG_LINES, LOG_CHARS = 20, 4_000  # of the log of a worker that was lost


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One line of faults.jsonl."""

    step: int
    kind: str
    worker: str
    cause: str
    action: str
    detected_s: float | None  # since the epoch
    recovery_s: float | None
    failure: str = ""  # where a lost worker ran, and the end of its log; empty: none was lost


@dataclass(frozen=True, slots=True)
class FaultLog:
    """faults.jsonl: all faults counted, the newest ones listed."""

    count: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)  # kind -> faults, the most frequent first
    steps: Mapping[int, int] = field(default_factory=dict)  # step -> faults, by step
    newest: tuple[FaultRow, ...] = ()  # first
    broken: tuple[Broken, ...] = ()


def read_fault_log(run: Path) -> FaultLog:
    """faults.jsonl, however long: the newest faults, and how many there were of each kind and in each step."""
    path = run / FAULTS
    kinds: Counter[str] = Counter()
    steps: Counter[int] = Counter()
    newest: deque[FaultRow] = deque(maxlen=MOST_FAULTS)
    broken = []
    for line, number in read_json_lines(path, run) if path.exists() else ():
        if isinstance(line, Broken):
            broken.append(line)
        elif not is_step(line.get("step")) or not (isinstance(kind := line.get("kind"), str) and kind):
            broken.append(Broken(f"{FAULTS}:{number}", "has no step or no kind"))
        else:
            row = _fault_row(line)
            kinds[row.kind] += 1
            steps[row.step] += 1
            newest.append(row)
    return FaultLog(
        count=kinds.total(),
        kinds=dict(kinds.most_common(MOST_KINDS)),
        steps=dict(sorted(steps.items())[-MOST_FAULT_STEPS:]),
        newest=tuple(sorted(newest, key=lambda row: row.detected_s or 0.0)[::-1]),
        broken=tuple(broken),
    )


def _fault_row(line: Mapping[str, Any]) -> FaultRow:
    texts = {name: line.get(name) for name in FAULT_TEXT}
    kind, worker, cause, action = (
        text[: FAULT_TEXT[name]] if isinstance(text, str) else "" for name, text in texts.items()
    )
    detected_s, recovery_s = (finite(line.get(name)) for name in ("detected_s", "recovery_s"))
    return FaultRow(
        line["step"], kind, worker, cause, action, detected_s, recovery_s, _failure_text(line.get("failure"))
    )


def _failure_text(written: Any) -> str:
    if not isinstance(written, Mapping):
        return ""
    lines = written.get("last_lines")
    texts = {name: value if isinstance(value := written.get(name), str) else "" for name in ("worker", "node", "log")}
    pid = written.get("pid")
    ended = tuple(str(line) for line in lines[-MOST_LOG_LINES:]) if isinstance(lines, list) else ()
    return str(WorkerFailure(**texts, pid=pid if isinstance(pid, int) else 0, last_lines=ended))[:LOG_CHARS]
