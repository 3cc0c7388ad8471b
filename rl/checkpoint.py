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
        .draft_*                being written; never read, removed by the next save

A checkpoint is written into a draft, every file is flushed to the disk, the manifest follows, and one rename publishes
it. Older ones are removed only after that. No torch here: files and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.trajectory import RunState

log = logging.getLogger(__name__)

MANIFEST, STATE, CONFIG, SCORE = "manifest.json", "state.json", "config.yaml", "score.json"
LATEST, BEST = "latest", "best"  # pointers
CHECKPOINTS = "checkpoints"  # folder of a run
POLICY_FOLDER = "policy"  # of a checkpoint: the Hugging Face folder, for whoever uses the policy elsewhere
FORMAT = 1  # of the manifest
SPARE_BYTES = 16 * 2**20  # free space that must remain beside a checkpoint
BLOCK_BYTES = 2**20


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and, where there is one, the remedy."""


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
    """

    def __init__(self, run_dir: str | Path, keep: int = 2, best_metric: str = "") -> None:
        if keep < 1:
            raise ValueError(f"trainer.keep_checkpoints must be >= 1, got {keep}")
        self.folder = Path(run_dir) / CHECKPOINTS
        self._keep = keep
        self._best_metric = best_metric

    def begin(self, step: int, expected_bytes: int | None = None) -> Path:
        """An empty draft to write into. Drafts that a crash left behind are removed.

        Args:
            expected_bytes: size of what will be written; by default that of the newest checkpoint.
        Raises:
            CheckpointError: the folder cannot be written, or the disk is too full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".draft_*"):
                log.info("removing %s, left behind by an interrupted save", stale)
                shutil.rmtree(stale)
            self._require_space(expected_bytes)
            return Path(tempfile.mkdtemp(prefix=f".draft_{step:08d}_", dir=self.folder))
        except OSError as error:
            raise CheckpointError(f"{self.folder}: no checkpoint can be written here: {error}") from error

    def commit(self, draft: Path, state: RunState, config_yaml: str, value: float | None = None) -> Checkpoint:
        """Complete a draft, flush it to the disk, publish it with one rename, then remove what is too old.

        Args:
            value: of `best_metric`, if the policy was evaluated at this step.
        Raises:
            CheckpointError: the disk failed; the previous checkpoint is untouched.
        """
        home = self.folder / _name(state.step)
        try:
            (draft / CONFIG).write_text(config_yaml, encoding="utf-8")
            (draft / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            if self._best_metric and value is not None and math.isfinite(value):
                (draft / SCORE).write_text(json.dumps(asdict(Score(self._best_metric, value))), encoding="utf-8")
            (draft / MANIFEST).write_text(json.dumps(_manifest(draft), indent=1), encoding="utf-8")
            draft.chmod(0o755)
            _flush_tree(draft)
            self._publish(draft, home)
            self._set_aside_after(home)
            self._point_to_best(state.step)
        except OSError as error:
            raise CheckpointError(f"{home}: could not be saved: {error}") from error
        self._prune()
        return Checkpoint(home, state, config_yaml)

    def is_best(self, step: int, value: float) -> bool:
        """Whether a policy of this value at `step` is better than every checkpoint before it."""
        if not self._best_metric or not math.isfinite(value):
            return False
        best = self._best_before(step)
        return best is None or Score(self._best_metric, value).rank > best[1].rank

    def best_valid(self) -> Checkpoint | None:
        """The checkpoint that `best` points to; None if there is no such pointer.

        Raises:
            CheckpointError: it is not whole.
        """
        pointer = self.folder / BEST
        if not pointer.is_file():
            return None
        return open_checkpoint(self._pointed_to(pointer))

    def latest_valid(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. Says in the log which ones were passed over, and why."""
        for folder in self._newest_first():
            try:
                return open_checkpoint(folder)
            except CheckpointError as error:
                log.warning("checkpoint passed over: %s", error)
        return None

    def best_score(self) -> tuple[int, Score] | None:
        """Step and score of the checkpoint that `best` points to, without looking at its other files."""
        pointer = self.folder / BEST
        score = _read_score(home := self._pointed_to(pointer)) if pointer.is_file() else None
        return None if score is None else (int(home.name.removeprefix("step_")), score)

    def _newest_first(self) -> list[Path]:
        return sorted((path for path in self.folder.glob("step_*") if path.is_dir()), reverse=True)

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
        """Rename, and point to it. Whatever had the name (a torn save, an abandoned branch of the run) makes room."""
        replaced = self.folder / f".draft_replaced_{home.name}"
        if home.exists():
            home.rename(replaced)
        draft.rename(home)
        _flush(self.folder)
        self._point(LATEST, home)
        shutil.rmtree(replaced, ignore_errors=True)

    def _point(self, name: str, home: Path) -> None:
        """Make the pointer `name` say `home`, in one rename."""
        pointer = self.folder / f".{name}"
        pointer.write_text(home.name + "\n", encoding="utf-8")
        _flush(pointer)
        pointer.rename(self.folder / name)
        _flush(self.folder)

    def _point_to_best(self, newest_step: int) -> None:
        if best := self._best_before(newest_step + 1):
            self._point(BEST, best[0])
        elif (pointer := self.folder / BEST).is_file() and not self._pointed_to(pointer).is_dir():
            pointer.unlink()  # what it named was set aside

    def _pointed_to(self, pointer: Path) -> Path:
        return self.folder / pointer.read_text(encoding="utf-8").strip()

    def _set_aside_after(self, newest: Path) -> None:
        """Steps beyond the one just saved belong to a future that this run went back behind."""
        for folder in (folder for folder in self._newest_first() if folder.name > newest.name):
            log.warning("%s: set aside as superseded, the run was resumed from an earlier step", folder)
            shutil.rmtree(self.folder / f"superseded_{folder.name}", ignore_errors=True)
            folder.rename(self.folder / f"superseded_{folder.name}")

    def _prune(self) -> None:
        """Keep the newest few, and the best."""
        best = self.folder / BEST
        kept = self._pointed_to(best) if best.is_file() else None
        whole = [folder for folder in self._newest_first() if (folder / MANIFEST).is_file()]
        for folder in whole[self._keep :]:
            if folder != kept:
                shutil.rmtree(folder)

    def _best_before(self, step: int) -> tuple[Path, Score] | None:
        """The best of the checkpoints before `step`, by the scores in them."""
        scores = {folder: _read_score(folder) for folder in reversed(self._newest_first())}
        competing = [
            (folder, score)
            for folder, score in scores.items()
            if score is not None and score.metric == self._best_metric and folder.name < _name(step)
        ]
        return max(competing, key=lambda pair: pair[1].rank, default=None)  # the first of equals


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        CheckpointError: it is not there, incomplete or altered; says which file.
    """
    folder = Path(folder)
    for name, expected in _read_manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, though {MANIFEST} lists it")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path}: {size} bytes, {MANIFEST} says {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: content differs from {MANIFEST}")
    try:
        state = RunState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        return Checkpoint(folder, state, (folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: not readable: {error}") from error


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


def _manifest(folder: Path) -> dict[str, object]:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in _files(folder)
    }
    return {"format": FORMAT, "files": files}


def _read_manifest(folder: Path) -> dict[str, dict[str, object]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, so this is no complete checkpoint")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {manifest['format']}, this version reads {FORMAT}")
        return {str(name): {"bytes": f["bytes"], "sha256": f["sha256"]} for name, f in manifest["files"].items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a manifest: {error!r}") from error


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _flush_tree(folder: Path) -> None:
    """fsync every file, then every folder from the leaves up: a rename must not overtake the content."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush(Path(parent) / name)
        _flush(Path(parent))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
