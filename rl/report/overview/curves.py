"""The curves of a run, read as its metrics.jsonl grows: what was read is not read again.

Legend: P points of a curve.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.report.run_files import as_number, finite, is_step
from rl.tracking.metrics import current_names

BLOCK_BYTES = 2**22  # read at once
BEGINNING_BYTES = 64  # by which a file is known again
MOST_POINTS = 3_000  # of a curve that is sent; of a longer one every n-th, and the last
MOST_CURVES = 80  # asked for at once


class MetricLog:
    """metrics.jsonl of one run. Where a step was reported twice, the later number counts."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self._forget()

    def _forget(self) -> None:
        self._read_to = 0
        self._beginning = b""  # another one is another file
        self._torn = b""  # half a line
        self._rows: dict[int, dict[str, float]] = {}  # finite numbers by step
        self._written_s: dict[int, float] = {}  # since the epoch, by step
        self._broken = 0  # lines

    def refresh(self) -> None:
        """Read what is new; everything, if the file has become another one."""
        try:
            with self._path.open("rb") as file:
                beginning = file.read(BEGINNING_BYTES)
                size = file.seek(0, 2)
                if size < self._read_to or not beginning.startswith(self._beginning):
                    self._forget()
                self._beginning = beginning
                file.seek(self._read_to)
                while block := file.read(BLOCK_BYTES):
                    self._read_to += len(block)
                    *lines, self._torn = (self._torn + block).split(b"\n")
                    for line in lines:
                        self._take(line)
        except FileNotFoundError:
            self._forget()
        except OSError:
            return  # what was read stays: a file system that hangs comes back

    def curves(self, names: Sequence[str]) -> dict[str, Any]:
        """{curves: {name: {steps: P, seconds: P since the first line, values: P}}, broken: lines}.

        A metric that the run does not have, or has no finite number of, is absent.
        """
        first_s = min(self._written_s.values(), default=0.0)
        steps = sorted(self._rows)
        found = {}
        for name in names[:MOST_CURVES]:
            steps_P = _thinned([step for step in steps if name in self._rows[step]])
            if steps_P:
                found[name] = {
                    "steps": steps_P,
                    "seconds": [round(self._written_s.get(step, first_s) - first_s, 1) for step in steps_P],
                    "values": [self._rows[step][name] for step in steps_P],
                }
        return {"curves": found, "broken": self._broken}

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            numbers = json.loads(line.decode(errors="replace"), parse_constant=str)
            step = numbers["step"]
        except (ValueError, RecursionError, TypeError, KeyError):
            self._broken += 1
            return
        if not isinstance(numbers, dict) or not is_step(step):
            self._broken += 1
            return
        if (written_s := finite(numbers.get("time_s"))) is not None:
            self._written_s[step] = written_s
        row = self._rows.setdefault(step, {})
        for name, value in current_names(numbers).items():
            if name not in ("step", "time_s") and isinstance(number := as_number(value), float):
                row[name] = number


def _thinned(steps_P: list[int]) -> list[int]:
    every = -(-len(steps_P) // MOST_POINTS) or 1
    return steps_P[(len(steps_P) - 1) % every :: every] if steps_P else []
