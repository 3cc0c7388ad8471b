"""The checkpoints of a run on disk, written so that a crash at any moment leaves the previous one whole.

    <run>/checkpoints/
        step_00000020/          one complete checkpoint (rl.checkpoint.checkpoint)
        latest                  name of the newest one, for people and scripts
        best                    name of the one with the best score, likewise; never removed as too old
        superseded_step_*       a future that the run went back behind; not read again
        .draft_*                being written or removed; never read, removed by the next save
        .replaced_step_*        making room for another save of the same step; read if that never came

A checkpoint is written into a draft, every file is flushed to the disk, the manifest follows, and one rename publishes
it. Older ones are removed only after that, by a rename first. No torch here: files and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rl.checkpoint.checkpoint import (
    CONFIG,
    KERNELS,
    SCORE,
    STATE,
    Checkpoint,
    Score,
    checkpoint_name,
    num_bytes,
    open_checkpoint,
    read_score,
    step_of,
)
from rl.checkpoint.listing import best_before, complete, newest_first
from rl.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    DamagedError,
    complete_records,
    explained,
    flush,
    flush_tree,
    manifest_text,
)
from rl.checkpoint.pointers import BEST, LATEST, point, pointed_to
from rl.checkpoint.rotation import kept_steps, move_away, remove
from rl.trajectory import RunState, WrittenFile

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # folder of a run
SPARE_BYTES = 16 * 2**20  # free space that must remain beside a checkpoint


class CheckpointStore:
    """The checkpoints of one run. One writer at a time.

    draft = store.begin(step)
    ...                                       # everybody writes into `draft`
    store.commit(draft, state, config_yaml)
    store.latest_valid()                      # -> Checkpoint

    Which one is best is read off the scores inside the checkpoints, so that a crash between publishing and pointing
    forgets nothing. The first of equals is the best.

    Args:
        keep: how many of the newest are kept, beside the best one.
        best_metric: scores of this metric compete; empty: no checkpoint is best.
        keep_every: checkpoints of steps that are multiples of it are kept for good; 0: none is.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2, best_metric: str = "", keep_every: int = 0) -> None:
        if keep < 1:
            raise ValueError(f"trainer.keep_checkpoints must be >= 1, got {keep}")
        self.folder = Path(run_dir) / CHECKPOINTS
        self._keep, self._keep_every = keep, keep_every
        self._best_metric = best_metric
        self._held: list[Path] = []
        self._changing = threading.RLock()  # names change in one thread at a time: who prunes must not see half of it

    def begin(self, step: int, expected_bytes: int | None = None) -> Path:
        """An empty draft to write into. Drafts that a crash left behind are removed.

        Args:
            expected_bytes: size of what will be written; by default that of the newest checkpoint.
        Raises:
            CheckpointError: the folder cannot be written, or the disk is too full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
            self._require_space(expected_bytes)
            return Path(tempfile.mkdtemp(prefix=f".draft_{step:08d}_", dir=self.folder))
        except OSError as error:
            raise CheckpointError(f"{self.folder}: no checkpoint can be written here: {explained(error)}") from error

    def commit(
        self,
        draft: Path,
        state: RunState,
        config_yaml: str,
        value: float | None = None,
        written: Iterable[WrittenFile] = (),
        kernels: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Complete a draft, flush it to the disk, publish it with one rename, then remove what is too old.

        Args:
            value: of `best_metric`, if the policy was evaluated at this step.
            written: files of the draft that their writers have hashed and flushed; they are not read again.
            kernels: what the bits of a deterministic run depend on.
        Raises:
            CheckpointError: the disk failed, or a written file is not there; the previous checkpoint is untouched.
        """
        home = self.folder / checkpoint_name(state.step)
        try:
            (draft / CONFIG).write_text(config_yaml, encoding="utf-8")
            (draft / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            if kernels:
                (draft / KERNELS).write_text(json.dumps(dict(kernels)), encoding="utf-8")
            if self._best_metric and value is not None and math.isfinite(value):
                (draft / SCORE).write_text(json.dumps(asdict(Score(self._best_metric, value))), encoding="utf-8")
            text = manifest_text(complete_records(draft, written))
            (draft / MANIFEST).write_text(text, encoding="utf-8")
            flush_tree(draft)
            with self._changing:
                self._publish(draft, home)
                self._set_aside_after(state.step)
                point(self.folder, LATEST, home)
                self._point_to_best(state.step)
        except OSError as error:
            raise CheckpointError(f"{home}: could not be saved: {explained(error)}") from error
        self._prune()
        return Checkpoint(home, state, config_yaml)

    def adopt(self, draft: Path, step: int) -> Checkpoint:
        """Publish a draft that is the checkpoint of `step` already, brought from elsewhere.

        Raises:
            DamagedError: it is not whole, or of another step.
            CheckpointError: the disk failed.
        """
        found = open_checkpoint(draft)
        if found.state.step != step:
            raise DamagedError(f"{draft / STATE}: of step {found.state.step}, not of step {step}")
        home = self.folder / checkpoint_name(step)
        try:
            flush_tree(draft)
            with self._changing:
                self._publish(draft, home)
                point(self.folder, LATEST, newest_first(self.folder)[0])
                self._point_to_best(step)
        except OSError as error:
            raise CheckpointError(f"{home}: could not be published: {explained(error)}") from error
        return Checkpoint(home, found.state, found.config_yaml)

    def discard(self, draft: Path) -> None:
        """Give up a draft and the room it takes. What cannot be removed now is removed by the next save."""
        shutil.rmtree(draft, ignore_errors=True)

    def is_best(self, step: int, value: float) -> bool:
        """Whether a policy of this value at `step` is better than every checkpoint before it."""
        if not self._best_metric or not math.isfinite(value):
            return False
        best = best_before(self.folder, self._best_metric, step)
        return best is None or Score(self._best_metric, value).rank > best[1].rank

    def better(self, value: float, other: float) -> bool:
        """Whether one value of `best_metric` is worth more than another."""
        return Score(self._best_metric, value).rank > Score(self._best_metric, other).rank

    def best_valid(self) -> Checkpoint | None:
        """The checkpoint that `best` points to; None if there is no such pointer.

        Raises:
            CheckpointError: it is not whole.
        """
        pointed = pointed_to(self.folder, BEST)
        return None if pointed is None else open_checkpoint(pointed)

    def latest_valid(self, among: Container[int] | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. Says in the log which ones were passed over, and why.

        Args:
            among: steps that are looked at; None: all.
        """
        for step, folder in self.published().items():
            if among is not None and step not in among:
                continue
            try:
                return open_checkpoint(folder)
            except CheckpointError as error:
                log.warning("checkpoint passed over: %s", error)
        return None

    def published(self) -> dict[int, Path]:
        """Every checkpoint there is by its step, newest first; whole or not."""
        return {step_of(folder): folder for folder in newest_first(self.folder)}

    def best_score(self) -> tuple[int, Score] | None:
        """Step and score of the checkpoint that `best` points to, without looking at its other files."""
        home = pointed_to(self.folder, BEST)
        score = None if home is None else read_score(home)
        return None if home is None or score is None else (step_of(home), score)

    def kept(self) -> list[Path]:
        """The complete checkpoints that are not too old, newest first."""
        return self._kept_of(complete(self.folder))

    def steps_kept(self, steps: Iterable[int], best: int | None) -> list[int]:
        """Of these steps, those whose checkpoints stay, newest first: the last few, every so many, the best."""
        return kept_steps(steps, last=self._keep, every=self._keep_every, best=best)

    @contextmanager
    def hold(self, folder: Path) -> Iterator[None]:
        """Keep a checkpoint from being removed as too old until it has been read."""
        with self._changing:
            self._held.append(folder)
        try:
            yield
        finally:
            with self._changing:
                self._held.remove(folder)
            self._prune()

    def _kept_of(self, listed: Mapping[int, Path]) -> list[Path]:
        best = pointed_to(self.folder, BEST)
        return [listed[step] for step in self.steps_kept(listed, None if best is None else step_of(best))]

    def _clear(self) -> None:
        """Finish what a crash interrupted."""
        for replaced in self.folder.glob(".replaced_step_*"):
            home = self.folder / replaced.name.removeprefix(".replaced_")
            if home.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(home)
        for stale in self.folder.glob(".draft_*"):
            log.info("removing %s, left behind by an interrupted save", stale)
            shutil.rmtree(stale, ignore_errors=True)  # a rank that gave up late may still be writing

    def _require_space(self, expected_bytes: int | None) -> None:
        if expected_bytes is None:
            expected_bytes = next((num_bytes(folder) for folder in newest_first(self.folder)), 0)
        free = shutil.disk_usage(self.folder).free
        if free < expected_bytes + SPARE_BYTES:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {_mib(expected_bytes + SPARE_BYTES)}, {_mib(free)} are free; make "
                "room, lower trainer.keep_checkpoints, or set output_dir to another disk"
            )

    def _publish(self, draft: Path, home: Path) -> None:
        """Rename. Whatever had the name (a torn save, an abandoned branch of the run) makes room."""
        draft.chmod(0o755)
        replaced = self.folder / f".replaced_{home.name}"
        if home.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            home.rename(replaced)
        draft.rename(home)
        flush(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _point_to_best(self, newest_step: int) -> None:
        if best := best_before(self.folder, self._best_metric, newest_step + 1):
            point(self.folder, BEST, best[0])
        elif (pointed := pointed_to(self.folder, BEST)) is not None and not pointed.is_dir():
            (self.folder / BEST).unlink()  # what it named was set aside

    def _set_aside_after(self, step: int) -> None:
        """Steps beyond the one just saved belong to a future that this run went back behind."""
        for folder in (folder for folder in newest_first(self.folder) if step_of(folder) > step):
            log.warning("%s: set aside as superseded, the run was resumed from an earlier step", folder)
            aside = self.folder / f"superseded_{checkpoint_name(step_of(folder))}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)

    def _prune(self) -> None:
        """Remove what is too old and not held. Failing is no failure of the save: it is there."""
        leaving = []
        with self._changing:
            listed = complete(self.folder)  # once: what is published from here on is not looked at
            kept = [*self._kept_of(listed), *self._held]
            for folder in listed.values():
                if folder not in kept:
                    leaving.append(self.folder / f".draft_removed_{checkpoint_name(step_of(folder))}")
                    move_away(folder, leaving[-1])
        for away in leaving:
            remove(away)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
