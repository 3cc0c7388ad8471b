"""What an examination found, and how it is shown: `dynframe check` and `dynframe doctor` speak alike."""

from __future__ import annotations

from collections.abc import Sequence
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
