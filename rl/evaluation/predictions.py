"""What an evaluation is on disk, so that it can be killed at any moment and go on.

    <run>/eval/<name>/
        identity.json       what the results depend on; a folder takes results of one identity only
        predictions.jsonl   one line per finished example, in the order they finished, written at once
        examples.json       the questions, for those who read the predictions
        rejected.jsonl      rows of the annotation file that were left out, if any
        metrics.json        when all are done
        logs/               all that the process logged, one file per go

A kill can tear the last line only; it is cut off, and its example rolled out again. No Ray, no torch: files only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from envs.data.rows import kind_of
from rl.config.errors import ConfigError
from rl.config.renamed import new_name

EVALUATIONS = "eval"  # folder of a run
IDENTITY, PREDICTIONS, REJECTED, METRICS = "identity.json", "predictions.jsonl", "rejected.jsonl", "metrics.json"
EXAMPLES = "examples.json"
SHOWN = 4  # differences named in a refusal
REMEDY = "give this evaluation a name of its own (evaluation.name=…), or --restart to move the old one aside"


class EvaluationError(ConfigError):
    """An evaluation's files cannot be used; the message names file, cause and remedy."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One example, rolled out and scored: a line of predictions.jsonl."""

    task_id: str
    index: int  # of the example in the benchmark, from 0
    group: str  # of the example, for metrics that are averages over groups
    metrics: Mapping[str, float]  # its value of each metric; one that does not apply to it is absent
    answer: str | None  # the prediction: body of <answer>; None: there is none
    windows_s: tuple[tuple[float, float], ...]  # and granted windows, in order
    text: str  # everything the policy wrote
    stop: str  # a StopReason
    calls: tuple[Mapping[str, Any], ...] = ()  # {"asked_s", "asked_fps", "granted_s", "granted_fps", "frames"} or
    #   {"malformed": reason} or {"refused": reason}
    frames: int = 0  # retrieved
    sampled_tokens: int = 0
    missing: str | None = None  # why there is no prediction: the video could not be read, or left no room to answer
    failed: str | None = None  # why a reward could not be computed
    session: int = 0  # which start of the evaluation, from 0
    elapsed_s: float = 0.0  # since that session began to roll out
    duration_s: float | None = None  # of the clip; None: not known


class PredictionFile:
    """The predictions.jsonl of one evaluation, open: what is done, and the place to add to. One writer at a time.

    with PredictionFile(path) as file:      # cuts off a torn last line
        file.outcomes                       # by task id; of an example rolled out again, the last
        file.append(outcome)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> PredictionFile:
        """Read what is done.

        Raises:
            EvaluationError: another process writes here, or a line in the middle is no outcome.
        """
        self._file = self.path.open("a+b")
        try:
            _lock(self._file, self.path)
            self._file.seek(0)
            whole = _whole_lines(self._file.read())
            self.outcomes = {outcome.task_id: outcome for outcome in _outcomes(whole, self.path)}
            self._file.truncate(len(whole))
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, outcome: Outcome) -> None:
        """Keep an outcome: once this returns, killing the process does not lose it."""
        line = json.dumps(asdict(outcome), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode(errors="backslashreplace") + b"\n")  # half a Unicode pair as JSON's own escape
        self._file.flush()
        self.outcomes[outcome.task_id] = outcome

    @property
    def next_session(self) -> int:
        """The number of the next session."""
        return 1 + max((outcome.session for outcome in self.outcomes.values()), default=-1)


def open_folder(folder: Path, identity: Mapping[str, Any], *, restart: bool = False) -> PredictionFile:
    """The evaluation in `folder`, begun if there is none.

    Args:
        identity: everything the results depend on, under flat keys.
        restart: move what lies there aside and begin anew.
    Raises:
        EvaluationError: the folder holds results of another identity, or cannot be written.
    """
    home = folder / IDENTITY
    try:
        if restart and folder.exists():
            folder.rename(folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        folder.mkdir(parents=True, exist_ok=True)
        if not home.exists():
            if (folder / PREDICTIONS).exists():
                raise EvaluationError(f"{folder}: there are predictions, but no {IDENTITY} says of what; {REMEDY}")
            write_json(home, identity)
    except OSError as error:
        raise EvaluationError(f"{folder}: cannot be written: {error.strerror}") from error
    begun = {new_name(key) or key: value for key, value in read_json(home).items()}  # of an earlier version
    _refuse_another(begun, identity, folder)
    return PredictionFile(folder / PREDICTIONS)


def read_outcomes(path: Path) -> list[Outcome]:
    """The whole lines of a predictions.jsonl, which may still be growing; of an example rolled out again, the
    last.

    Raises:
        EvaluationError: it cannot be read, or a line in the middle is no outcome.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error
    return list({outcome.task_id: outcome for outcome in _outcomes(_whole_lines(content), path)}.values())


def write_json(path: Path, value: Any) -> None:
    """Strict JSON, there in full or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file of ours.

    Raises:
        EvaluationError: it cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EvaluationError(f"{path}: expected an object with keys, got {kind_of(value)}")
    return value


def _refuse_another(begun: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    changed = [
        f"{key}: {begun.get(key)!r} -> {identity.get(key)!r}"
        for key in sorted(begun.keys() | identity.keys())
        if begun.get(key) != identity.get(key)
    ]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise EvaluationError(
            f"{folder}: holds results of other settings: {'; '.join(changed[:SHOWN])}{more}; {REMEDY}"
        )


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however that ends
    except BlockingIOError as error:
        raise EvaluationError(f"{path}: another evaluation is writing here; let it finish, or stop it") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # a network file system without locks
            raise


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _outcomes(content: bytes, path: Path) -> list[Outcome]:
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            found.append(_outcome(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{path}:{number}: no outcome of an evaluation ({error}); delete the line, and its example is rolled "
                "out again"
            ) from error
    return found


def _outcome(row: Any) -> Outcome:
    if not isinstance(row, dict):
        raise TypeError(f"expected an object with keys, got {kind_of(row)}")
    windows_s = tuple((start_s, end_s) for start_s, end_s in row.pop("windows_s"))
    outcome = Outcome(windows_s=windows_s, calls=tuple(row.pop("calls", ())), **row)
    numbers = (*outcome.metrics.values(), outcome.index, outcome.session, outcome.elapsed_s, outcome.frames)
    if not isinstance(outcome.task_id, str) or not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a text or a number stands where it does not belong")
    return outcome
