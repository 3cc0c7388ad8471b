"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases; samples to the latter. The door to wandb."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from rl.checkpoint.manifest import explained
from rl.tracking.backlog import Backlog
from rl.tracking.lines import append, cut_torn_line, replace_whole
from rl.tracking.metrics import describe
from rl.tracking.samples import COLUMNS, Samples, cells, markdown_table

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

    def show(self, step: int, draw: Callable[[], Samples]) -> None:
        """Show what numbers do not tell, in the sinks that can; drawn only where there is one.

        No run ends by it: what cannot be shown is a warning, its traceback is in the log file.
        """
        showing = [sink for sink in self._sinks if isinstance(sink, SampleSink)]
        if not showing:
            return
        try:
            samples = draw()
            for sink in showing:
                sink.show(step, samples)
        except Exception as error:  # whatever a policy has written, and whatever drawing libraries make of it
            log.warning("samples of step %d are not shown: %s", step, error, exc_info=error)

    def attach(self, make: Callable[[], Path]) -> None:
        """Keep a file with the run, in the sinks that can; made only where there is one. No run ends by it, either."""
        attaching = [sink for sink in self._sinks if isinstance(sink, WandbSink)]
        if not attaching:
            return
        try:
            path = make()
            for sink in attaching:
                sink.attach(path)
        except Exception as error:  # the run is done and saved
            log.warning("no page is attached to the run: %s", error, exc_info=error)

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


@runtime_checkable
class SampleSink(Protocol):
    """A sink that shows tables and videos, too."""

    def show(self, step: int, samples: Samples) -> None: ...


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
    """Event files under tensorboard/: curves by section; the configuration and tables as text, videos as images.

    What a full disk does not take is missing; metrics.jsonl has the numbers.
    """

    holds_text = False

    def __init__(self, folder: Path, *, keep_through_step: int, config_yaml: str = "") -> None:
        # tensorboard's writer comes with torch, which only a run needs
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(folder / "tensorboard"))
        self._purge_step: int | None = keep_through_step + 1  # until a file says so
        self._config_yaml = config_yaml
        self._writer: SummaryWriter | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._try(step, lambda writer: [writer.add_scalar(name, value, step) for name, value in metrics.items()])

    def show(self, step: int, samples: Samples) -> None:
        self._try(step, partial(_show_in_tensorboard, step=step, samples=samples))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _try(self, step: int, add: Callable[[Any], object]) -> None:
        try:
            if self._writer is None:
                self._writer, self._purge_step = self._open(purge_step=self._purge_step), None
                if self._config_yaml:
                    fenced = f"```yaml\n{self._config_yaml}```"
                    self._writer.add_text("configuration", fenced, step)
            add(self._writer)
        except OSError as error:  # its thread has ended by it, and takes nothing more
            self._writer = None
            log.warning("tensorboard: points are missing up to step %d: %s", step, explained(error))


class WandbSink:
    """Weights & Biases: curves by section, configuration, tables, videos, files; offline works without network."""

    holds_text = False

    def __init__(self, folder: Path, *, mode: str, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb  # a quarter of a second, for runs that use it

        identity = {"id": name, "resume": "allow"}  # a resumed run goes on in its own curves
        self._wandb = wandb
        # of its thirty lines one is of use: `place`; where it sends, its warnings and errors are told as well
        if "weave" not in sys.modules:  # who uses it has it; without it three lines recommend it, silent or not
            os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        quiet = wandb.Settings(silent=mode == "offline", quiet=True, show_info=False)
        self._run = wandb.init(
            dir=str(folder), mode=mode, project=project, name=name, config=dict(config), settings=quiet, **identity
        )

    @property
    def place(self) -> str:
        """Where its curves are, or lie until they are sent."""
        folder = Path(self._run.dir).parent
        return f"offline; to send it: wandb sync {folder}" if self._run.offline else self._run.url

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def show(self, step: int, samples: Samples) -> None:
        shown: dict[str, Any] = {}
        if samples.videos:
            shown[f"samples/{samples.of}"] = [
                self._wandb.Video(io.BytesIO(video.gif), caption=video.caption, format="gif")
                for video in samples.videos
            ]
        if samples.rows:
            shown[f"samples/{samples.of}_table"] = self._wandb.Table(list(COLUMNS), list(map(cells, samples.rows)))
        if shown:
            self._run.log(shown, step=step)

    def attach(self, path: Path) -> None:
        """Keep a file with the run, as an artifact of its own."""
        artifact = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
        artifact.add_file(str(path), policy="immutable")
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


def _show_in_tensorboard(writer: Any, step: int, samples: Samples) -> None:
    """A video is an image whose bytes are an animated GIF: browsers play it."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    for index, video in enumerate(samples.videos):
        image = Summary.Image(height=video.height, width=video.width, colorspace=3, encoded_image_string=video.gif)
        value = Summary.Value(tag=f"samples/{samples.of}/{index}", image=image)
        writer.file_writer.add_summary(Summary(value=[value]), step)
    captions = "\n".join(f"{index}. {video.caption}" for index, video in enumerate(samples.videos))
    texts = {"videos": captions, "table": markdown_table(samples.rows) if samples.rows else ""}
    for name, text in texts.items():
        if text:
            writer.add_text(f"samples/{samples.of}/{name}", text, step)


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
