"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases. The door to wandb."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rl.checkpoint.manifest import explained
from rl.tracking.backlog import Backlog
from rl.tracking.lines import append, cut_torn_line, replace_whole
from rl.tracking.metrics import describe

log = logging.getLogger(__name__)

NOTHING: Mapping[str, str] = MappingProxyType({})


class MetricLog:
    """Writes declared metrics to every sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, step: int, metrics: Mapping[str, float], texts: Mapping[str, str] = NOTHING) -> None:
        """Log one step's metrics; undeclared names raise KeyError, NaN means (nothing to average) are left out.

        Args:
            texts: what is no number, such as fingerprints; for the sinks that hold text.
        """
        for name in (*metrics, *texts):
            describe(name)
        known = {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
        for sink in self._sinks:
            sink.write(step, {**known, **texts} if sink.holds_text else known)

    def close(self) -> None:
        """Flush and close every sink. What a full disk does not take any more is a warning: the lines are elsewhere."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                log.warning("%s: not everything is written: %s", type(sink).__name__, explained(error))


class Sink(Protocol):
    """Somewhere numbers go, and texts where it holds them."""

    holds_text: bool

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """metrics.jsonl: one line per step, written at once. Non-finite numbers are strings, so every line stays JSON."""

    holds_text = True

    def __init__(self, folder: Path, *, keep_through_step: int, backlog: Backlog | None = None) -> None:
        """
        Args:
            keep_through_step: lines of later steps go: the run repeats them.
            backlog: keeps what the disk does not take; None: that is an error at once.
        """
        self._path, self._backlog = folder / "metrics.jsonl", backlog or Backlog(max_failed=1)
        cut = partial(_keep_through, self._path, keep_through_step)
        self._backlog.write(self._path, keep_through_step, cut)  # after what the learners before have not got written

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        finite = {
            name: value if isinstance(value, str) or math.isfinite(value) else str(value)
            for name, value in metrics.items()
        }
        line = json.dumps({"step": step, "time_s": round(time.time(), 3), **finite}) + "\n"
        self._backlog.write(self._path, step, partial(_append_line, self._path, line))

    def close(self) -> None:
        """Every line is written, or waits in the backlog."""


class TensorBoardSink:
    """Event files under tensorboard/. Points that a full disk does not take are missing; metrics.jsonl has them."""

    holds_text = False

    def __init__(self, folder: Path, *, keep_through_step: int) -> None:
        # tensorboard's writer comes with torch, which only a run needs
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(folder / "tensorboard"))
        self._purge_step: int | None = keep_through_step + 1  # until a file says so
        self._writer: SummaryWriter | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            if self._writer is None:
                self._writer, self._purge_step = self._open(purge_step=self._purge_step), None
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:  # its thread has ended by it, and takes nothing more
            self._writer = None
            log.warning("tensorboard: points are missing up to step %d: %s", step, explained(error))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """Weights & Biases; offline works without network."""

    holds_text = False

    def __init__(self, folder: Path, *, mode: str, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb  # a quarter of a second, for runs that use it

        identity = {"id": name, "resume": "allow"}  # a resumed run goes on in its own curves
        self._run = wandb.init(dir=str(folder), mode=mode, project=project, name=name, config=dict(config), **identity)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _append_line(path: Path, line: str) -> None:
    cut_torn_line(path)
    append(path, line)


def _keep_through(path: Path, step: int) -> None:
    kept = _lines_through(path, step) if path.exists() else []
    replace_whole(path, lambda draft: draft.write_text("".join(kept), encoding="utf-8"))


def _lines_through(path: Path, step: int) -> list[str]:
    """Lines of steps a resumed run will not repeat; a torn last line is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] <= step:
            kept.append(line + "\n")
    return kept
