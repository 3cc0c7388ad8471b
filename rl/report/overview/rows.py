"""One line of the list per run: what is known of it from the end of its metrics, without reading all of them."""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from rl.checkpoint.lease.folder import LEASE
from rl.checkpoint.lease.holder import Holder, process_start, read_holder, this_process
from rl.report.build import file_state
from rl.report.run_files import ANCESTRY, Broken, Number, as_number, finite, is_step, read_config, read_summary
from rl.tracking.metrics import current_names

TAIL_BYTES = 2**17  # of metrics.jsonl: a few hundred steps, and with them an evaluation or two
STALE_AFTER_S = 90.0  # of a lease of another machine, which is rewritten every few seconds
MOST_REASONS, MOST_NAME = 5, 200  # of what is wrong with a run; characters of its name
STATES = ("live", "finished", "stopped", "empty", "broken")
WATCHED = ("metrics.jsonl", "config.yaml", "summary.json", ANCESTRY, "eval")
STARTED = re.compile(r"\d{4}-(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ)\.yaml")  # configs/NNNN-TIME.yaml, one per start


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in the list."""

    name: str
    family: str  # the name without its seed: runs of one family are seeds of one another
    seed: str  # empty: not known
    state: str  # one of STATES
    step: int
    planned: int | None  # steps
    numbers: Mapping[str, Number]  # the last of each metric in the tail
    started_s: float | None  # since the epoch
    updated_s: float | None  # likewise, when a number was last written
    ancestry: tuple[Mapping[str, Any], ...]  # nearest first: {run, step, source}
    evaluations: int
    method: str = ""
    policy: str = ""
    reasons: tuple[str, ...] = ()  # what could not be read


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a metrics.jsonl."""

    step: int | None = None
    numbers: Mapping[str, Number] = field(default_factory=dict)
    first_s: float | None = None
    last_s: float | None = None
    reasons: tuple[str, ...] = ()


class RowCache:
    """Rows of runs; one whose files did not change is not read again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple, RunRow]] = {}

    def get(self, run: Path) -> RunRow | None:
        """The row of a run as it is now; None: it has to be read."""
        known = self._known.get(run)
        return known[1] if known is not None and known[0] == _state_of(run) else None

    def stale(self, run: Path) -> RunRow | None:
        """The row as it was when it was last read; None: it never was."""
        known = self._known.get(run)
        return known[1] if known is not None else None

    def read(self, run: Path) -> RunRow:
        """Read it."""
        state = _state_of(run)
        row = read_row(run, is_held=bool(state[-1]))
        self._known[run] = state, row
        return row


def read_row(run: Path, *, is_held: bool) -> RunRow:
    """What the list says of a run. Never raises for what lies in the folder.

    Args:
        is_held: whether a process that lives writes into it.
    """
    pairs, bad_config = read_config(run)
    settings = dict(pairs)
    summary, bad_summary = read_summary(run)
    tail = _read_tail(run, is_held=is_held)
    name, seed = str(settings.get("name") or run.name)[:MOST_NAME], settings.get("seed", "")
    planned = _whole(settings.get("trainer.steps"))
    reasons = (*(f"{bad.place}: {bad.reason}" for bad in (*bad_config, *bad_summary)), *tail.reasons)
    return RunRow(
        name=name,
        family=family_of(name, seed),
        seed=seed[:20],
        state=_run_state(is_held, tail, planned, summary, has_settings=bool(settings), reasons=reasons),
        step=tail.step or 0,
        planned=planned,
        numbers=tail.numbers,
        started_s=_started(run) or tail.first_s,
        updated_s=tail.last_s,
        ancestry=_ancestry(run),
        evaluations=_count_evaluations(run),
        method=settings.get("algorithm.advantage.method", "")[:40],
        policy=settings.get("policy.path", "")[-MOST_NAME:],
        reasons=reasons[:MOST_REASONS],
    )


def family_of(name: str, seed: str) -> str:
    """A name without its seed: "look" of "look-seed3", "look_s3", and of "look-3" where 3 is the configured seed."""
    found = re.fullmatch(r"(.+?)[-_. /]?(seed|s)?[-_=]?(\d+)", name)
    if found and (found[2] == "seed" or found[3] == seed) and not found[1][-1].isdigit():
        return found[1].rstrip("-_. /") or name
    return name


def is_alive(lease: bytes | None, changed_s: float, now_s: float) -> bool:
    """Whether the process lives that a lease.json names.

    Args:
        changed_s: when the file was written; counts for a process of another machine only.
    """
    holder: Holder | None = read_holder(lease)
    if holder is None:
        return False
    if holder.machine and holder.machine == _this_machine():
        try:
            return process_start(holder.process_id) == holder.process_started
        except psutil.Error:
            return True  # it is there, and belongs to somebody else
    return now_s - changed_s < STALE_AFTER_S


@cache
def _this_machine() -> str:
    return this_process().machine


def _state_of(run: Path) -> tuple:
    """Changes when the row does; the last entry is whether a process writes there."""
    path = run / LEASE
    try:
        lease, changed_s = path.read_bytes(), path.stat().st_mtime
    except OSError:
        lease, changed_s = None, 0.0
    files = tuple(file_state(run / name) for name in WATCHED)
    return (*files, is_alive(lease, changed_s, time.time()))


def _run_state(
    is_held: bool,
    tail: _Tail,
    planned: int | None,
    summary: Mapping[str, Any],
    *,
    has_settings: bool,
    reasons: tuple[str, ...],
) -> str:
    if is_held:
        return "live"
    if tail.step is None:
        return "empty" if has_settings or not reasons else "broken"
    if planned is None:
        return "finished" if summary else "stopped"
    return "finished" if tail.step >= planned else "stopped"


def _read_tail(run: Path, *, is_held: bool) -> _Tail:
    path = run / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            first = file.readline(TAIL_BYTES)
            size = file.seek(0, 2)
            start = file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES)
    except FileNotFoundError:
        return _Tail(reasons=() if (run / "config.yaml").exists() else ("no metrics.jsonl and no config.yaml in it",))
    except OSError as error:
        return _Tail(reasons=(f"metrics.jsonl: cannot be read ({error.strerror})",))
    lines = text.split(b"\n")
    torn = lines.pop()  # what no newline ends: nothing, or half a line
    if start:
        lines = lines[1:]
    reasons = [] if is_held or not torn.strip() else ["metrics.jsonl: its last line is torn"]
    parsed = [line for line in map(_parse, lines) if line is not None]
    steps = [line for line in parsed if isinstance(line, dict)]
    if bad := len(parsed) - len(steps):
        reasons.append(f"metrics.jsonl: {bad} broken {'line' if bad == 1 else 'lines'} among the last {len(parsed)}")
    numbers: dict[str, Number] = {}
    for line in steps:
        numbers |= {key: as_number(value) for key, value in current_names(line).items() if value is not None}
    opening = _parse(first.strip()) if not start or first.endswith(b"\n") else None
    first_s = finite(opening.get("time_s")) if isinstance(opening, dict) else None
    last_s = finite(numbers.pop("time_s", None))
    numbers.pop("step", None)
    return _Tail(max((line["step"] for line in steps), default=None), numbers, first_s, last_s, tuple(reasons))


def _parse(line: bytes) -> dict[str, Any] | Broken | None:
    """A step's numbers; what is broken; None of an empty line."""
    if not line.strip():
        return None
    try:
        found = json.loads(line.decode(errors="replace"), parse_constant=str)
    except (ValueError, RecursionError):
        return Broken("metrics.jsonl", "is not JSON")
    if not isinstance(found, dict) or not is_step(found.get("step")):
        return Broken("metrics.jsonl", "has no step")
    return found


def _ancestry(run: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        told = json.loads((run / ANCESTRY).read_text(encoding="utf-8", errors="replace"))
        return tuple(
            {"run": str(one["run"])[:MOST_NAME], "step": one["step"], "source": str(one["source"])[-MOST_NAME:]}
            for one in told[:10]
            if one["step"] is None or is_step(one["step"])
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ()


def _started(run: Path) -> float | None:
    """When it was first started, by the name of the configuration that is kept of each start."""
    try:
        names = sorted(path.name for path in (run / "configs").iterdir())
    except OSError:
        return None
    for name in names:
        if found := STARTED.fullmatch(name):
            try:
                return float(calendar.timegm(time.strptime(found[1], "%Y-%m-%dT%H-%M-%SZ")))
            except (ValueError, OverflowError):
                return None
    return None


def _count_evaluations(run: Path) -> int:
    try:
        return sum(path.is_dir() for path in (run / "eval").iterdir())
    except OSError:
        return 0


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else None
