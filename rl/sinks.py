"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases. The door to wandb."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import wandb

from rl.metrics import describe

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
        """Flush and close every sink."""
        for sink in self._sinks:
            sink.close()


class Sink(Protocol):
    """Somewhere numbers go, and texts where it holds them."""

    holds_text: bool

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """metrics.jsonl: one line per step, flushed at once. Non-finite numbers are strings, so every line stays JSON."""

    holds_text = True

    def __init__(self, folder: Path, *, keep_through_step: int) -> None:
        path, draft = folder / "metrics.jsonl", folder / ".metrics.jsonl"
        kept = _lines_through(path, keep_through_step) if path.exists() else []
        draft.write_text("".join(kept), encoding="utf-8")
        draft.replace(path)  # a crash here leaves the old log or the new one
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        finite = {
            name: value if isinstance(value, str) or math.isfinite(value) else str(value)
            for name, value in metrics.items()
        }
        self._file.write(json.dumps({"step": step, "time_s": round(time.time(), 3), **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Event files under tensorboard/."""

    holds_text = False

    def __init__(self, folder: Path, *, keep_through_step: int) -> None:
        # tensorboard's writer comes with torch, which only a run needs
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_through_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases; offline works without network."""

    holds_text = False

    def __init__(self, folder: Path, *, mode: str, project: str, name: str, config: Mapping[str, Any]) -> None:
        identity = {"id": name, "resume": "allow"}  # a resumed run goes on in its own curves
        self._run = wandb.init(dir=str(folder), mode=mode, project=project, name=name, config=dict(config), **identity)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


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
