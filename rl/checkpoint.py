"""What a run is on disk, written so that a crash at any moment leaves the previous checkpoint whole.

    <run>/checkpoints/
        step_00000020/          one complete checkpoint
            manifest.json       size and SHA-256 of every other file; written last
            state.json          RunState
            config.yaml         the resolved configuration
            ...                 whatever the learners wrote (rank_0.safetensors, policy/, ...)
        latest                  name of the newest one, for people and scripts
        .draft_*                being written; never read, removed by the next save

A checkpoint is written into a draft, every file is flushed to the disk, the manifest follows, and one rename publishes
it. Older ones are removed only after that. No torch here: files and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.trajectory import RunState

log = logging.getLogger(__name__)

MANIFEST, STATE, CONFIG, LATEST = "manifest.json", "state.json", "config.yaml", "latest"
FORMAT = 1  # of the manifest
SPARE_BYTES = 16 * 2**20  # free space that must remain beside a checkpoint
BLOCK_BYTES = 2**20


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and, where there is one, the remedy."""


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
    """

    def __init__(self, run_dir: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"trainer.keep_checkpoints must be >= 1, got {keep}")
        self.folder = Path(run_dir) / "checkpoints"
        self._keep = keep

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

    def commit(self, draft: Path, state: RunState, config_yaml: str) -> Checkpoint:
        """Complete a draft, flush it to the disk, publish it with one rename, then remove what is too old.

        Raises:
            CheckpointError: the disk failed; the previous checkpoint is untouched.
        """
        home = self.folder / f"step_{state.step:08d}"
        try:
            (draft / CONFIG).write_text(config_yaml, encoding="utf-8")
            (draft / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            (draft / MANIFEST).write_text(json.dumps(_manifest(draft), indent=1), encoding="utf-8")
            draft.chmod(0o755)
            _flush_tree(draft)
            self._publish(draft, home)
        except OSError as error:
            raise CheckpointError(f"{home}: could not be saved: {error}") from error
        self._prune(home)
        return Checkpoint(home, state, config_yaml)

    def latest_valid(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. Says in the log which ones were passed over, and why."""
        for folder in self._newest_first():
            try:
                return open_checkpoint(folder)
            except CheckpointError as error:
                log.warning("checkpoint passed over: %s", error)
        return None

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
        pointer = self.folder / f".{LATEST}"
        pointer.write_text(home.name + "\n", encoding="utf-8")
        _flush(pointer)
        pointer.rename(self.folder / LATEST)
        _flush(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self, newest: Path) -> None:
        """Keep the newest few. Steps beyond the one just saved belong to a future that this run went back behind."""
        folders = self._newest_first()
        for folder in (folder for folder in folders if folder.name > newest.name):
            log.warning("%s: set aside as superseded, the run was resumed from an earlier step", folder)
            shutil.rmtree(self.folder / f"superseded_{folder.name}", ignore_errors=True)
            folder.rename(self.folder / f"superseded_{folder.name}")
        whole = [folder for folder in folders if folder.name <= newest.name and (folder / MANIFEST).is_file()]
        for folder in whole[self._keep :]:
            shutil.rmtree(folder)


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
