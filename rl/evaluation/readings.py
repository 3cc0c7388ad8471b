"""Both readings of an answer: strict, as rewards read it, and lenient, as stock models are evaluated.

An outcome holds the strict values under their plain names and the lenient ones under "lenient/…". What a report calls
by plain names is `evaluation.reading`; the other reading's values have its name before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from envs.answers.comparison import score_leniently
from envs.benchmarks.prediction import said_in_the_end
from rewards.answer import answer
from rl.trajectory import Trajectory, VideoTask

STRICT, LENIENT = "strict", "lenient"
_BY_SCRIPTS = "official/"  # the authors' scripts read the response in ways of their own


def both_readings(strict: Mapping[str, float], lenient: Mapping[str, float]) -> dict[str, float]:
    """The values of an outcome."""
    return dict(strict) | {_named(LENIENT, name): lenient[name] for name in lenient if not name.startswith(_BY_SCRIPTS)}


def both_accuracies(task: VideoTask, trajectory: Trajectory) -> dict[str, float]:
    """The answer compared with the reference, by each reading."""
    said = said_in_the_end(trajectory.answer_text)
    lenient = score_leniently(said, task.answer, task.answer_kind, task.question) if said else 0.0
    strict = answer(task, trajectory)
    return both_readings({"accuracy": strict}, {"accuracy": max(strict, lenient)})


def as_read(values: Mapping[str, float], reading: str) -> dict[str, float]:
    """An outcome's values as a report names them."""
    if reading == STRICT:
        return dict(values)
    prefix = _named(LENIENT, "")
    lenient = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    strict = {name: value for name, value in values.items() if not name.startswith(prefix)}
    return {_named(STRICT, name) if name in lenient else name: value for name, value in strict.items()} | lenient


def in_either(names: Iterable[str]) -> tuple[str, ...]:
    """Names of metrics, and what they are called when they are the other reading's."""
    return tuple(called for name in names for called in (name, _named(STRICT, name), _named(LENIENT, name)))


def by_either_reading(name: str) -> str:
    """The name of a metric without that of a reading before it."""
    reading, slash, rest = name.partition("/")
    return rest if slash and reading in (STRICT, LENIENT) else name


def is_detail(name: str) -> bool:
    """Whether a metric is a part of what the other reading says, which metrics.json has and the table leaves out."""
    reading, slash, rest = name.partition("/")
    return bool(slash) and reading in (STRICT, LENIENT) and "/" in rest


def _named(reading: str, name: str) -> str:
    return f"{reading}/{name}"
