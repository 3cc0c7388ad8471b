"""What a run is on disk, written so that a crash at any moment leaves the previous checkpoint whole.

    <run>/checkpoints/
        step_00000020/          one complete checkpoint
            manifest.json       size and SHA-256 of every other file; written last
            state.json          RunState
            score.json          what the policy was worth, if it was evaluated at this step
            config.yaml         the resolved configuration
            ...                 whatever the learners wrote (rank_0.safetensors, policy/, ...)
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
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    DamagedError,
    complete_records,
    explained,
    files_under,
    flush,
    flush_tree,
    manifest_text,
    require_whole,
)
from rl.trajectory import RunState, WrittenFile

log = logging.getLogger(__name__)

STATE, CONFIG, SCORE = "state.json", "config.yaml", "score.json"
LATEST, BEST = "latest", "best"  # pointers
CHECKPOINTS = "checkpoints"  # folder of a run
POLICY_FOLDER = "policy"  # of a checkpoint: the Hugging Face folder, for whoever uses the policy elsewhere
SPARE_BYTES = 16 * 2**20  # free space that must remain beside a checkpoint


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy was worth: a metric's name, with "-" before it if lower is better, and its value."""

    metric: str
    value: float

    @property
    def rank(self) -> float:
        """The higher the better."""
        return -self.value if self.metric.startswith("-") else self.value


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint whose files are what the manifest says."""

    folder: Path
    state: RunState
    config_yaml: str


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
    ) -> Checkpoint:
        """Complete a draft, flush it to the disk, publish it with one rename, then remove what is too old.

        Args:
            value: of `best_metric`, if the policy was evaluated at this step.
            written: files of the draft that their writers have hashed and flushed; they are not read again.
        Raises:
            CheckpointError: the disk failed, or a written file is not there; the previous checkpoint is untouched.
        """
        home = self.folder / _name(state.step)
        try:
            (draft / CONFIG).write_text(config_yaml, encoding="utf-8")
            (draft / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            if self._best_metric and value is not None and math.isfinite(value):
                (draft / SCORE).write_text(json.dumps(asdict(Score(self._best_metric, value))), encoding="utf-8")
            text = manifest_text(complete_records(draft, written))
            (draft / MANIFEST).write_text(text, encoding="utf-8")
            flush_tree(draft)
            with self._changing:
                self._publish(draft, home)
                self._set_aside_after(state.step)
                self._point(LATEST, home)
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
        home = self.folder / _name(step)
        try:
            flush_tree(draft)
            with self._changing:
                self._publish(draft, home)
                self._point(LATEST, self._newest_first()[0])
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
        best = self._best_before(step)
        return best is None or Score(self._best_metric, value).rank > best[1].rank

    def better(self, value: float, other: float) -> bool:
        """Whether one value of `best_metric` is worth more than another."""
        return Score(self._best_metric, value).rank > Score(self._best_metric, other).rank

    def best_valid(self) -> Checkpoint | None:
        """The checkpoint that `best` points to; None if there is no such pointer.

        Raises:
            CheckpointError: it is not whole.
        """
        pointed = self._pointed_to(BEST)
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
        return {step_of(folder): folder for folder in self._newest_first()}

    def best_score(self) -> tuple[int, Score] | None:
        """Step and score of the checkpoint that `best` points to, without looking at its other files."""
        home = self._pointed_to(BEST)
        score = None if home is None else _read_score(home)
        return None if home is None or score is None else (step_of(home), score)

    def kept(self) -> list[Path]:
        """The complete checkpoints that are not too old, newest first."""
        return self._kept_of(self._complete())

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

    def _newest_first(self) -> list[Path]:
        homes = {path.name: path for path in self.folder.glob("step_*") if path.is_dir()}
        for replaced in self.folder.glob(".replaced_step_*"):  # a kill between two renames left it without its name
            homes.setdefault(replaced.name.removeprefix(".replaced_"), replaced)
        return sorted((path for name, path in homes.items() if re.fullmatch(r"step_\d+", name)), key=step_of)[::-1]

    def _complete(self) -> dict[int, Path]:
        return {step: folder for step, folder in self.published().items() if (folder / MANIFEST).is_file()}

    def _kept_of(self, complete: Mapping[int, Path]) -> list[Path]:
        best = self._pointed_to(BEST)
        return [complete[step] for step in self.steps_kept(complete, None if best is None else step_of(best))]

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
            expected_bytes = next((_size(folder) for folder in self._newest_first()), 0)
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

    def _point(self, name: str, home: Path) -> None:
        """Make the pointer `name` say `home`, in one rename."""
        pointer = self.folder / f".{name}"
        pointer.write_text(home.name + "\n", encoding="utf-8")
        flush(pointer)
        pointer.rename(self.folder / name)
        flush(self.folder)

    def _point_to_best(self, newest_step: int) -> None:
        if best := self._best_before(newest_step + 1):
            self._point(BEST, best[0])
        elif (pointed := self._pointed_to(BEST)) is not None and not pointed.is_dir():
            (self.folder / BEST).unlink()  # what it named was set aside

    def _pointed_to(self, name: str) -> Path | None:
        """The checkpoint a pointer names; None where there is no pointer, or one that names nothing of ours."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        named = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"step_\d+", named):
            log.warning("%s: passed over: it says %.80r, which is no checkpoint's name", pointer, named)
            return None
        return self.folder / named

    def _set_aside_after(self, step: int) -> None:
        """Steps beyond the one just saved belong to a future that this run went back behind."""
        for folder in (folder for folder in self._newest_first() if step_of(folder) > step):
            log.warning("%s: set aside as superseded, the run was resumed from an earlier step", folder)
            aside = self.folder / f"superseded_{_name(step_of(folder))}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)

    def _prune(self) -> None:
        """Remove what is too old and not held. Failing is no failure of the save: it is there."""
        leaving = []
        with self._changing:
            complete = self._complete()  # listed once: what is published from here on is not looked at
            kept = [*self._kept_of(complete), *self._held]
            for folder in complete.values():
                if folder not in kept:
                    leaving.append(self.folder / f".draft_removed_{_name(step_of(folder))}")
                    _try_to_remove(folder, lambda folder=folder, away=leaving[-1]: folder.rename(away))
        for away in leaving:  # half of a checkpoint never bears its name
            _try_to_remove(away, lambda away=away: shutil.rmtree(away))

    def _best_before(self, step: int) -> tuple[Path, Score] | None:
        """The best of the checkpoints before `step`, by the scores in them."""
        scores = {folder: _read_score(folder) for folder in reversed(self._newest_first())}
        competing = [
            (folder, score)
            for folder, score in scores.items()
            if score is not None and score.metric == self._best_metric and step_of(folder) < step
        ]
        return max(competing, key=lambda pair: pair[1].rank, default=None)  # the first of equals


def _try_to_remove(folder: Path, remove: Callable[[], object]) -> None:
    try:
        remove()
    except FileNotFoundError:  # it is gone, or its renaming has failed and said so
        pass
    except OSError as error:
        log.warning("%s: too old, but could not be removed: %s", folder, explained(error))


def kept_steps(steps: Iterable[int], *, last: int, every: int, best: int | None) -> list[int]:
    """Of the steps that have a checkpoint, those that keep it, newest first.

    Args:
        last: the newest so many stay.
        every: multiples of it stay; 0: none for that reason.
        best: this one stays; None: none for that reason.
    """
    newest_first = sorted(steps, reverse=True)
    return [
        step
        for index, step in enumerate(newest_first)
        if index < last or step == best or (every > 0 and step % every == 0)
    ]


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(folder.name.rpartition("_")[2])


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        DamagedError: it is not there, incomplete or altered; says which file.
    """
    folder = Path(folder)
    require_whole(folder)
    try:
        state = _run_state(json.loads((folder / STATE).read_text(encoding="utf-8")))
        return Checkpoint(folder, state, (folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{folder}: not readable: {error}") from error


def _run_state(saved: dict[str, object]) -> RunState:
    state = RunState(**saved)  # type: ignore[arg-type] - looked at next
    for name, value in asdict(state).items():
        if type(value) is not int or abs(value) >= 2**63 or (name != "seed" and value < 0):
            raise ValueError(f"{STATE} says {name} is {value!r:.80}")
    return state


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _read_score(folder: Path) -> Score | None:
    """The score of a whole checkpoint; None if it was not evaluated, or cannot be read."""
    if not (folder / MANIFEST).is_file() or not (folder / SCORE).is_file():
        return None
    try:
        score = Score(**json.loads((folder / SCORE).read_text(encoding="utf-8")))
        return score if math.isfinite(score.value) else None
    except (OSError, TypeError, ValueError) as error:
        log.warning("%s: passed over: %s", folder / SCORE, error)
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_under(folder))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
