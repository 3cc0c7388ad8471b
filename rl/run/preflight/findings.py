"""What an examination found, and how it is shown: `dynframe check` and `dynframe doctor` speak alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"  # works, but worth knowing
    FAILED = "failed"  # does not work; the detail says what to do


COLOURS = {Level.OK: "green", Level.NOTE: "yellow", Level.FAILED: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    subject: str
    level: Level
    detail: str


def passed(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(finding.level is not Level.FAILED for finding in findings)


def failed_details(findings: Iterable[Finding]) -> str:
    """What failed and why, on one line; empty: nothing did."""
    return "; ".join(f"{each.subject}: {each.detail}" for each in findings if each.level is Level.FAILED)


def on_one_line(error: Exception) -> str:
    """What an error says; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def as_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """For --json."""
    return {"passed": passed(findings), "findings": [asdict(finding) for finding in findings]}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """A table: level, subject, detail with the remedy."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = f"[{COLOURS[finding.level]}]{finding.level.value}[/]"
        table.add_row(mark, finding.subject, escape(finding.detail))
    console.print(table)
