"""Tables that are written as they are measured, within a budget of seconds: what is cut off loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tables import print_table


class Report:
    """Prints every table and keeps all of them in OUT.json and OUT.md.

    Args:
        out: path without suffix.
        budget_s: no section is begun that would not end within it.
    """

    def __init__(self, out: Path, budget_s: float) -> None:
        self._out, self._budget_s, self._start = out, budget_s, time.perf_counter()
        self._tables: list[dict] = []
        self.failed: list[str] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def section(self, title: str, needs_s: float, measure: Callable[[], None]) -> None:
        """Run one section if it is likely to end in time. What it raises is reported, and the next one runs.

        Args:
            needs_s: what it takes on the machine that the budget is for.
        """
        if self.elapsed_s + needs_s > self._budget_s:
            self.note(
                title, f"not reached: {self.elapsed_s:.0f} of {self._budget_s:.0f} s were over, it takes {needs_s:.0f}"
            )
            return
        print(f"## {title} (at {self.elapsed_s:.0f} s)\n", flush=True)
        try:
            measure()
        except Exception as error:  # the sections behind it must not be lost; the exit status tells
            self.failed.append(title)
            told = str(error).strip() or "no message"
            self.note(title, f"failed: {type(error).__name__}: {told.splitlines()[0]}")
            traceback.print_exc()

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table and write everything so far."""
        print_table(headings, rows)
        shown = [[str(cell) for cell in row] for row in rows]
        self._add({"title": title, "headings": list(headings), "rows": shown, "at_s": round(self.elapsed_s, 1)})

    def note(self, title: str, text: str) -> None:
        """A sentence instead of a table."""
        print(f"{title}: {text}\n", flush=True)
        self._add({"title": title, "note": text, "at_s": round(self.elapsed_s, 1)})

    def _add(self, entry: dict) -> None:
        self._tables.append(entry)
        self._write(".json", json.dumps({"failed": self.failed, "tables": self._tables}, indent=1) + "\n")
        self._write(".md", "\n".join(map(_markdown, self._tables)))

    def _write(self, suffix: str, text: str) -> None:
        path = self._out.with_name(self._out.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".part")
        scratch.write_text(text)
        scratch.replace(path)


def _markdown(entry: dict) -> str:
    if "note" in entry:
        return f"### {entry['title']}\n\n{entry['note']}\n"
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        print_table(entry["headings"], entry["rows"])
    return f"### {entry['title']}\n\n{written.getvalue()}"
