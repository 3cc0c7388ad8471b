"""A disk that is full or may not be written, for real: one line that says so, and the run goes on from what it has."""

import os
import subprocess

import pytest
import torch

from rl.checkpoint import CheckpointStore
from rl.learner_state import CapturedState, Layout
from rl.manifest import CheckpointError
from rl.saving import Contents, Saver
from rl.snapshot import Snapshot
from rl.trajectory import RunState

DISK_MIB = 32
MAKE_ROOM = "make room, lower trainer.keep_checkpoints, or set output_dir to another disk"
PATIENCE_S = 30.0


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip() or 'not root'}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def store(disk):
    return CheckpointStore(disk / "run", keep=1)


@pytest.fixture
def saver(store):
    return Saver(store, timeout_s=PATIENCE_S, max_failed=3)


class Rank:
    """A learner rank's part of a checkpoint, written for real.

    Args:
        then: called when it is written.
    """

    def __init__(self, mib, then=lambda: None):
        state = CapturedState(Layout(1, 1, 0), {"group_0.master": torch.zeros(mib * 2**18)}, {"steps": "1"})
        self._snapshot, self._then = Snapshot(state, None), then

    def save(self, draft):
        self._draft = draft
        return self

    def result(self, timeout_s):
        written = self._snapshot.write(self._draft)
        self._then()
        return written


def save(saver, step, rank):
    saver.save(rank.save, Contents(RunState(step, step, seed=7), "name: run\n"))
    saver.flush()


def fill(disk):
    """Somebody else writes until nothing more goes in."""
    with (disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"\0" * 4096)


def test_a_disk_that_fills_up_in_the_middle_of_a_ranks_write(saver, store, disk, caplog):
    save(saver, 10, Rank(mib=1))

    with pytest.raises(CheckpointError, match=f"No space left on device.*{MAKE_ROOM}"):
        save(saver, 20, Rank(mib=40))

    assert str(store.folder) in caplog.text and "1 of 3 in a row; the run goes on" in caplog.text
    assert store.latest_valid().state.step == 10
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step_00000010"]  # the room is free again
    save(saver, 30, Rank(mib=1))
    assert store.latest_valid().state.step == 30


def test_a_disk_that_fills_up_before_the_manifest(saver, store, disk):
    save(saver, 10, Rank(mib=1))

    with pytest.raises(CheckpointError, match=f"step_00000020: could not be saved: No space left.*{MAKE_ROOM}"):
        save(saver, 20, Rank(mib=1, then=lambda: fill(disk)))

    assert store.latest_valid().state.step == 10 and not list(store.folder.glob(".draft_*"))
    (disk / "ballast").unlink()
    save(saver, 30, Rank(mib=1))
    assert store.latest_valid().state.step == 30


def test_a_disk_that_stays_full_stops_the_run_with_one_line_and_its_checkpoint_stays(saver, store, disk):
    save(saver, 10, Rank(mib=1))
    fill(disk)
    for step in (20, 30):  # found before anything is written
        with pytest.raises(CheckpointError, match="the last checkpoint could not be saved"):
            save(saver, step, Rank(mib=1))
    with pytest.raises(CheckpointError, match=r"3 saves in a row.*needs 17 MiB, 0 MiB are free; make room") as failure:
        save(saver, 40, Rank(mib=1))
    assert len(str(failure.value).splitlines()) == 1
    assert store.latest_valid().state.step == 10


def test_a_disk_that_becomes_read_only_and_is_mended(saver, store, disk):
    save(saver, 10, Rank(mib=1))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        with pytest.raises(CheckpointError, match=r"Read-only file system.*make it writable, or set output_dir"):
            save(saver, 20, Rank(mib=1))
        assert store.latest_valid().state.step == 10
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    save(saver, 30, Rank(mib=1))
    assert store.latest_valid().state.step == 30 and not list(store.folder.glob(".draft_*"))


def test_a_disk_that_becomes_read_only_in_the_middle_of_a_save(saver, store, disk):
    def become_read_only():
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    save(saver, 10, Rank(mib=1))
    try:
        with pytest.raises(CheckpointError, match=r"step_00000020: could not be saved: Read-only.*writable"):
            save(saver, 20, Rank(mib=1, then=become_read_only))
        assert store.latest_valid().state.step == 10
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    save(saver, 30, Rank(mib=1))  # and what the failed one left is gone
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step_00000030"]


def test_old_checkpoints_that_cannot_be_removed_are_a_warning(saver, store, monkeypatch, caplog):
    save(saver, 10, Rank(mib=1))

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(1, "Not mine")

    monkeypatch.setattr("shutil.rmtree", refuse)
    save(saver, 20, Rank(mib=1))
    assert store.latest_valid().state.step == 20
    assert "too old, but could not be removed: Not mine; make it writable" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_belongs_to_somebody_else_is_named_with_the_remedy(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*Permission denied.*make it writable"):
        CheckpointStore(tmp_path).begin(0)
