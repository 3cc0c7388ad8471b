"""A run's folder, read for its report: whatever is there, and a list of what could not be read.

Nothing here raises for a damaged file: a torn line costs that line, and the page says so.

Legend: S steps that reported any number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rl.config.errors import ConfigError
from rl.config.yaml_text import LOADER
from rl.tracking.metrics import current_names

Number = float | str | None  # a string is a number that is not finite, as the run wrote it; None: not reported
RECORDS = re.compile(r"step_(\d+)\.jsonl")
ANCESTRY, MOST_ANCESTORS = "ancestry.json", 100  # of a run with init_from (rl.run.origin)
MOST_CONFIG_KEYS = 5000  # of a configuration that is shown
NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that was left out, and why."""

    place: str  # file relative to the run, with the line
    reason: str


@dataclass(frozen=True, slots=True)
class MetricTable:
    """metrics.jsonl by column; a training step and an evaluation after it are one row."""

    steps_S: tuple[int, ...]
    columns: Mapping[str, tuple[Number, ...]]  # by metric name, S long
    texts: Mapping[str, str] = field(default_factory=dict)  # of columns that hold no numbers, such as hashes: the last
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True, slots=True)
class StepFile:
    """The records of one training step, or of one evaluation on held-out tasks."""

    kind: str  # "train" | "held_out"
    step: int
    path: Path

    @property
    def id(self) -> str:
        """Short name used in links: "12", or "h12" for held-out tasks."""
        return f"{'h' if self.kind == 'held_out' else ''}{self.step}"


def open_run(folder: Path) -> Path:
    """The absolute folder of a run.

    Raises:
        ConfigError: no such folder, or not a run's.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run; give the folder of one, such as runs/quickstart")
    if not any((folder / name).exists() for name in ("metrics.jsonl", "config.yaml", "trajectories", "held_out")):
        raise ConfigError(f"{folder}: not a run (no metrics.jsonl, config.yaml or trajectories/ in it)")
    return folder.absolute()


def read_json_lines(path: Path, run: Path) -> Iterator[tuple[dict[str, Any] | Broken, int]]:
    """Each line of a file with its number, from 1: an object, or why there is none. Blank lines are passed over."""
    place = path.relative_to(run).as_posix()
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:  # "\n" only: texts hold U+2028
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse(line, f"{place}:{number}"), number
    except OSError as error:
        yield Broken(place, f"cannot be read ({error.strerror})"), 0


def read_metrics(run: Path) -> MetricTable:
    """metrics.jsonl as a table; where a step was reported twice, the later number counts."""
    path = run / "metrics.jsonl"
    rows: dict[int, dict[str, Number]] = {}
    broken = []
    for line, number in read_json_lines(path, run) if path.exists() else ():
        if isinstance(line, Broken):
            broken.append(line)
        elif not is_step(step := line.get("step")):
            broken.append(Broken(f"metrics.jsonl:{number}", "has no step"))
        else:
            row = rows.setdefault(step, {})
            numbers = current_names(line).items()
            row |= {name: as_number(value) for name, value in numbers if name not in ("step", "time_s")}
    steps_S = tuple(sorted(rows))
    names = sorted({name for row in rows.values() for name in row})
    columns = {name: tuple(rows[step].get(name) for step in steps_S) for name in names}
    texts = {name: text for name, values in columns.items() if (text := _last_text(values)) is not None}
    numbers = {name: values for name, values in columns.items() if name not in texts}
    return MetricTable(steps_S, numbers, texts, tuple(broken))


def step_files(run: Path) -> list[StepFile]:
    """The files of records, by step; held-out ones after the training step they follow."""
    found = []
    for kind, folder in (("train", "trajectories"), ("held_out", "held_out")):
        for path in (run / folder).glob("step_*.jsonl"):
            if named := RECORDS.fullmatch(path.name):
                found.append(StepFile(kind, int(named[1]), path))
    return sorted(found, key=lambda file: (file.step, file.kind == "held_out"))


def read_config(run: Path) -> tuple[list[tuple[str, str]], list[Broken]]:
    """config.yaml as (dotted key, value) in the file's order."""
    path = run / "config.yaml"
    if not path.exists():
        return [], []
    try:
        tree = yaml.load(path.read_text(encoding="utf-8", errors="replace"), Loader=LOADER)
        flat = []
        for pair in _flatten(tree, ""):
            flat.append(pair)
            if len(flat) == MOST_CONFIG_KEYS:
                return flat, [Broken("config.yaml", f"only its first {MOST_CONFIG_KEYS} keys are shown")]
        return flat, []
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: 5,000 digits
        return [], [Broken("config.yaml", f"cannot be read ({first_line(error)})")]


def read_ancestry(run: Path) -> list[tuple[str, str]]:
    """What the run began with, and what that began with, as rows of the configuration: (name, value)."""
    try:
        told = json.loads((run / ANCESTRY).read_text(encoding="utf-8", errors="replace"))
        return [
            (
                f"ancestor {place}",
                f"{one['run'] or 'a policy'}, step {one['step']}, weights {one['weights']}: {one['source']}",
            )
            for place, one in enumerate(told[:MOST_ANCESTORS], start=1)
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def read_summary(run: Path) -> tuple[dict[str, Any], list[Broken]]:
    """summary.json, written when a run ends; {} before."""
    path = run / "summary.json"
    if not path.exists():
        return {}, []
    parsed = read_object(path, path.name)
    return ({}, [parsed]) if isinstance(parsed, Broken) else (parsed, [])


def as_number(value: Any) -> Number:
    """A finite float; what is not finite, or no number at all, as text; None as it is."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)[:40]
    return number if math.isfinite(number) else str(number)


def is_step(value: Any) -> bool:
    """Whether it can number a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def finite(value: Any) -> float | None:
    """A finite float; None of what is none."""
    if type(value) is float and math.isfinite(value):  # nearly all are
        return value
    number = as_number(value)
    return None if isinstance(number, str) else number


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_object(path: Path, place: str) -> dict[str, Any] | Broken:
    try:
        return _parse(path.read_text(encoding="utf-8", errors="replace"), place)
    except OSError as error:
        return Broken(place, f"cannot be read ({error.strerror})")


def _parse(text: str, place: str) -> dict[str, Any] | Broken:
    try:
        parsed = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as error:
        return Broken(place, f"is not JSON ({first_line(error)})")
    return parsed if isinstance(parsed, dict) else Broken(place, "is not a JSON object")


def _flatten(tree: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(tree, default=str, ensure_ascii=False) if not isinstance(tree, str) else tree


def _last_text(values: Sequence[Number]) -> str | None:
    """Of a column that holds nothing but text; None: it has numbers, or nothing."""
    known = [value for value in values if value is not None]
    is_text = known and all(isinstance(value, str) and value not in NOT_FINITE for value in known)
    return str(known[-1]) if is_text else None
