"""Saving beside the run: the run waits for a copy in memory only, threads write it to the disk and to the remote.

| who | does | waits for | at most |
|---|---|---|---|
| the run, in `save` | begins a draft, has the learners copy | the save before, if under way | trainer.save_timeout_s |
| a thread per save | publishes when every rank has written | the ranks | trainer.save_timeout_s |
| the mirror's thread | copies to the remote, removes what is too old there | the remote | only the end waits for it |
| the run, at its end | nothing | the last save, then the mirror | save_timeout_s, remote_timeout_s |

A save that fails is no end of a run: the previous checkpoint is there and the next due step tries again. Too many in a
row are, and the last one. The remote never is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.lease.lease import LeaseLostError, may_always_write
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.mirror import Mirror
from rl.checkpoint.sampled_steps import write_sampled_steps
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import Fault, RunState, SampledStep, WorkSpan, WrittenFile

log = logging.getLogger(__name__)

PUBLISHING_S = 60.0  # beyond the ranks' own deadline: manifest, flush, rename
GRACE_S = 30.0  # for what is under way when a run ends by an error or a signal


class Pending(Protocol):
    """Files that are being written elsewhere."""

    def result(self, timeout_s: float) -> Sequence[WrittenFile]:
        """All of them, when they are on the disk."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What the run itself adds to a checkpoint."""

    state: RunState
    config_yaml: str
    value: float | None = None  # of trainer.best_metric, if the policy was evaluated at this step
    kernels: Mapping[str, str] | None = None  # what the bits of a deterministic run depend on
    sampled: Mapping[int, SampledStep] = field(default_factory=dict)  # steps sampled ahead, by their numbers


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """One that is under way; `done` gives the seconds and bytes it took, or what went wrong."""

    step: int
    value: float | None
    done: Future[dict[str, float]]


class Saver:
    """Saves the checkpoints of a run, one at a time.

    with Saver(store, timeout_s=600, max_failed=3) as saver:
        saver.save(learners.save, Contents(state, config_yaml))    # returns after the copy
        metrics |= saver.poll()                                     # once per step
    # the last one is published here, or CheckpointError raised

    Args:
        timeout_s: until every rank has written its part.
        max_failed: failures in a row that stop the run.
        mirror: keeps the remote in line.
        mirror_timeout_s: how long the end of the run waits for it.
        may_write: raises LeaseLostError where another process writes the run by now; nothing is published then.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        timeout_s: float,
        max_failed: int,
        mirror: Mirror | None = None,
        mirror_timeout_s: float = 0.0,
        may_write: Callable[[], None] = may_always_write,
    ) -> None:
        self._store, self._timeout_s, self._max_failed = store, timeout_s, max_failed
        self._mirror, self._mirror_timeout_s = mirror, mirror_timeout_s
        self._may_write = may_write
        self._under_way: Save | None = None
        self._failures: list[str] = []  # in a row
        self._published: set[int] = set()  # steps, by this process
        self._metrics: dict[str, float] = {}
        self._faults: list[Fault] = []
        self._spans: deque[WorkSpan] = deque()  # the thread that writes appends, the run's takes

    def save(self, copy: Callable[[Path], Pending], contents: Contents) -> None:
        """Start a save; returns when `copy` has. What `copy` raises is passed on.

        Args:
            copy: has the learners copy themselves and write into a folder in the background.
        Raises:
            CheckpointError: too many saves in a row have failed.
            LeaseLostError: another process writes the run.
        """
        self._may_write()
        step, start = contents.state.step, time.perf_counter()
        waited_out = self._settle(self._timeout_s + PUBLISHING_S)
        self._add("save/wait_seconds", time.perf_counter() - start)
        if not waited_out:
            self._failed(step, "the save before is still under way; the disk or a rank does not answer")
            return
        start = time.perf_counter()
        try:
            draft = self._store.begin(step)
        except CheckpointError as error:
            self._failed(step, str(error))
            return
        try:
            pending = copy(draft)
        except BaseException:
            self._store.discard(draft)
            raise
        self._add("save/copy_seconds", time.perf_counter() - start)
        self._under_way = Save(step, contents.value, Future())
        work = (self._under_way, draft, pending, contents)
        threading.Thread(target=self._finish, args=work, name=f"save-{step}", daemon=True).start()

    def poll(self) -> dict[str, float]:
        """Numbers of what was saved since the last call; waits for nothing.

        Raises:
            CheckpointError: too many saves in a row have failed.
        """
        self._settle(0.0)
        numbers, self._metrics = self._metrics, {}
        return numbers | (self._mirror.poll() if self._mirror else {})

    def take_faults(self) -> list[Fault]:
        """Saves and copies that failed since the last call of this method."""
        faults, self._faults = self._faults, []
        return faults + (self._mirror.take_faults() if self._mirror else [])

    def take_spans(self) -> list[WorkSpan]:
        """When a checkpoint was written beside the run, since the last call of this method."""
        return [self._spans.popleft() for _ in range(len(self._spans))]

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until what is under way is published.

        Raises:
            CheckpointError: the last save has failed, or is not done in time.
        """
        timeout_s = self._timeout_s + PUBLISHING_S if timeout_s is None else timeout_s
        if not self._settle(timeout_s):
            step = self._under_way.step if self._under_way else 0
            raise CheckpointError(f"the checkpoint of step {step} was not written within {timeout_s:.0f} s")
        if self._failures:
            raise CheckpointError(f"the last checkpoint could not be saved: {self._failures[-1]}")

    def drain(self) -> None:
        """What is under way may be published, within a grace; it fails in the log only: another error is on its way."""
        if self._under_way is None:
            return
        try:
            self.flush(GRACE_S)
        except CheckpointError as failure:
            log.warning("%s", failure)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint of those published here; the run continues from it, and repeats those after it.

        Others may lie on the disk: until the first save, a future that the run went back behind is among them.
        """
        found = self._store.latest_valid(self._published)
        self._published = {step for step in self._published if found and step <= found.state.step}
        return found

    def has_published(self, step: int) -> bool:
        """Whether the checkpoint of a step was published here."""
        return step in self._published

    def is_best(self, step: int, value: float) -> bool:
        """Whether a policy of this value at `step` is better than every one saved or being saved before it."""
        coming = self._under_way.value if self._under_way and self._under_way.step < step else None
        return self._store.is_best(step, value) and (coming is None or self._store.better(value, coming))

    def copy_earlier(self) -> None:
        """Copy what the run has to the remote: an earlier start may have ended before everything was there."""
        if self._mirror:
            self._mirror.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
        else:
            self.drain()
        if self._mirror and not self._mirror.finish(self._mirror_timeout_s if error is None else GRACE_S):
            log.warning("the last checkpoints are not all at %s; the next run of this name copies them", self._mirror)

    def _finish(self, save: Save, draft: Path, pending: Pending, contents: Contents) -> None:
        """Runs in a thread of its own."""
        start, began_s = time.perf_counter(), time.time()
        try:
            if contents.sampled:
                write_sampled_steps(draft, contents.sampled)
            written = pending.result(self._timeout_s)
            self._may_write()
            found = self._store.commit(
                draft, contents.state, contents.config_yaml, contents.value, written, contents.kernels
            )
        except BaseException as error:  # raised in the run at its next poll
            try:
                self._store.discard(draft)
            finally:
                save.done.set_exception(error)
            return
        self._spans.append(WorkSpan("checkpoint", "write", began_s, time.time()))
        seconds, size = time.perf_counter() - start, sum(file.num_bytes for file in written)
        log.info("checkpoint of step %d: %s, %.1f s after the copy", save.step, found.folder, seconds)
        save.done.set_result({"save/write_seconds": seconds, "save/bytes": float(size)})
        if self._mirror:
            self._mirror.wake()

    def _settle(self, timeout_s: float) -> bool:
        """Take note of how the save under way went; False: it is not done in time."""
        if self._under_way is None:
            return True
        save = self._under_way
        if not wait([save.done], timeout_s).done:
            return False
        self._under_way = None
        error = save.done.exception()
        if isinstance(error, RuntimeError | OSError) and not isinstance(error, LeaseLostError):
            self._failed(save.step, str(error))
        elif error is not None:
            raise error  # neither a run of another process nor a mistake of ours is a failure of the disk
        else:
            self._failures = []
            self._published.add(save.step)
            for name, value in save.done.result().items():
                self._add(name, value)
        return True

    def _failed(self, step: int, cause: str) -> None:
        self._add("save/failed", 1.0)
        self._failures.append(cause)
        action = "the checkpoint before stays; the next due step tries again"
        self._faults.append(Fault("save_failed", "checkpoints", cause, action, time.time(), 0.0))
        log.warning(
            "the checkpoint of step %d could not be saved (%d of %d in a row; the run goes on, the checkpoint before "
            "stays): %s",
            *(step, len(self._failures), self._max_failed, cause),
        )
        if len(self._failures) >= self._max_failed:
            raise CheckpointError(
                f"{len(self._failures)} saves in a row have failed (trainer.max_failed_saves={self._max_failed}), so "
                f"the run stops at step {step}; the last one: {cause}"
            )

    def _add(self, name: str, value: float) -> None:
        self._metrics[name] = self._metrics.get(name, 0.0) + value
