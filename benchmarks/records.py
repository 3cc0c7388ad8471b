"""Finished runs of a benchmark in one file beside its results, a JSON line each: tables can be made again from it, and
runs made on one machine count on another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.tracking.lines import replace_whole


class RunRecords:
    """What finished runs gave, by name; kept in a file that is written anew with every addition.

    Args:
        overrides: KEY=VALUE settings that every run of the program has; a file whose runs had others is not mixed up
            with them.
    Raises:
        SystemExit: the file is of runs with other overrides.
    """

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.path, self.overrides = path, sorted(overrides)
        self._of_run = self._read() if path.is_file() else {}

    def __contains__(self, name: str) -> bool:
        return name in self._of_run

    def __getitem__(self, name: str) -> Any:
        return self._of_run[name]

    def add(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep what a run gave."""
        self._of_run[name] = found
        lines = [
            json.dumps({"run": run, "overrides": self.overrides, "found": of_run}, separators=(",", ":"))
            for run, of_run in sorted(self._of_run.items())
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(line + "\n" for line in lines)
        replace_whole(self.path, lambda draft: draft.write_text(text, encoding="utf-8"))

    def _read(self) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if line["overrides"] != self.overrides:
                had, has = (" ".join(of) or "no overrides" for of in (line["overrides"], self.overrides))
                raise SystemExit(f"{self.path}: {line['run']} ran with {had}, this is {has}; give another --out")
        return {line["run"]: line["found"] for line in lines}
