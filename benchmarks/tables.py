"""What every benchmark prints in the same way: the machine, and Markdown tables with medians and ranges."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def print_conditions(*packages: str, repeats: int | None = None, module: str | None = None) -> None:
    """What a reader needs to judge or repeat the numbers: machine, versions, command.

    Args:
        module: of a program that is run with `python -m`.
    """
    named = [f"{package} {_version(package)}" for package in packages]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg()[:1])
    print(f"machine: {os.cpu_count()} cores ({_processor()}), load {load} at the start")
    print(f"versions: {', '.join((f'Python {platform.python_version()}', *named))}")
    program = ["-m", module] if module else [os.path.relpath(sys.argv[0])]
    print(f"command: `{shlex.join(['python', *program, *sys.argv[1:]])}`")
    print(f"repeats: {repeats}\n" if repeats else "")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A Markdown table."""
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    print()


@contextlib.contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """What is printed meanwhile becomes a file, in a folder that is made for it, once all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        yield
    path.write_text(written.getvalue(), encoding="utf-8")
    sys.stderr.write(f"written: {path}\n")


def median_and_range(values: Sequence[float], form: str = ".1f") -> str:
    """`median (min..max)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
