"""A disk that is full or may not be written, for real: one line that says so, and the run goes on from what it has."""

import json
import os
import subprocess
from functools import partial

import pytest
import torch

from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.snapshot import CapturedState, Snapshot
from rl.checkpoint.store import CheckpointStore
from rl.run.reporter import keep_step
from rl.tracking.backlog import Backlog, UnwrittenError
from rl.tracking.faults import FAULTS, read_faults, write_faults
from rl.tracking.sinks import JsonlSink, MetricLog, TensorBoardSink
from rl.trajectory import Fault, RunState

DISK_MIB = 32
MAKE_ROOM = "make room, lower trainer.keep_checkpoints, or set output_dir to another disk"
TIMEOUT_S = 30.0
ITS_THREAD_DIES = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # tensorboard's


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
    return Saver(store, timeout_s=TIMEOUT_S, max_failed=3)


class Rank:
    """A learner rank's part of a checkpoint, written for real.

    Args:
        then: called when it is written.
    """

    def __init__(self, mib, then=lambda: None):
        state = CapturedState("rank_0.safetensors", {"group_0.master": torch.zeros(mib * 2**18)}, {"steps": "1"})
        self._snapshot = Snapshot(state, lambda policy: policy.mkdir(exist_ok=True) or [])
        self._then = then

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


@pytest.fixture
def backlog():
    return Backlog(max_failed=3)


def long_line(step):
    """More than what is left of the page that a full disk has already given to the file: it will be torn."""
    return {"state/hash": f"{step}" * 5000}


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_metrics_that_a_full_disk_tears_are_whole_again_and_there_once_when_there_is_room(disk, backlog):
    sink, path = JsonlSink(disk, keep_through_step=-1, backlog=backlog), disk / "metrics.jsonl"
    sink.write(1, long_line(1))
    fill(disk)
    with path.open("ab", buffering=0) as file:  # really torn, if it were not for us
        assert 0 < file.write(b"x" * 5000) < 5000
    sink.write(2, long_line(2))
    assert steps_in(path) == [1]
    sink.write(2, {"held_out/tasks": 4.0})
    assert steps_in(path) == [1]

    (disk / "ballast").unlink()
    sink.write(3, long_line(3))
    sink.close()
    assert steps_in(path) == [1, 2, 2, 3]
    assert [(fault.kind, fault.worker) for fault in backlog.take_faults()] == [("write_failed", "metrics.jsonl")]


def test_a_disk_that_stays_full_stops_the_run_after_as_many_steps_as_failed_saves(disk, backlog):
    sink = JsonlSink(disk, keep_through_step=-1, backlog=backlog)
    sink.write(1, long_line(1))
    fill(disk)
    sink.write(2, long_line(2))
    sink.write(3, long_line(3))
    with pytest.raises(UnwrittenError, match=rf"metrics\.jsonl: could not be .*No space left.*{MAKE_ROOM}") as failure:
        sink.write(4, long_line(4))
    assert len(str(failure.value).splitlines()) == 1 and steps_in(disk / "metrics.jsonl") == [1]


def test_learners_that_are_built_anew_while_the_disk_is_full_repeat_their_steps_in_the_log(disk, backlog):
    first = JsonlSink(disk, keep_through_step=-1, backlog=backlog)
    first.write(1, long_line(1))
    fill(disk)
    first.write(2, long_line(2))
    again = JsonlSink(disk, keep_through_step=1, backlog=backlog)  # from the checkpoint of step 1
    again.write(2, {"reward/reasoning": 0.5})
    (disk / "ballast").unlink()
    again.write(3, {"reward/reasoning": 0.75})
    lines = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("reward/reasoning")) for line in lines] == [(1, None), (2, 0.5), (3, 0.75)]


def test_records_and_faults_wait_as_well(disk, backlog):
    def put(step):
        keep_step(backlog, disk / "trajectories", step, [{"text": "t" * 9000, "step": step}])

    put(1)
    fill(disk)
    put(2)
    assert [path.name for path in (disk / "trajectories").iterdir()] == ["step_000001.jsonl"]  # and no half of one
    died = Fault("worker_died", "rollout/0", "signal 9" * 1000, "replaced", 1.0, 2.0)
    backlog.write(disk / FAULTS, 2, partial(write_faults, disk, 2, [died, died]))
    assert read_faults(disk) == []
    (disk / "ballast").unlink()
    put(3)
    assert [read_step(disk, step) for step in (1, 2, 3)] == [1, 2, 3]
    assert [fault["kind"] for fault in read_faults(disk)] == ["worker_died"] * 2


def read_step(disk, step):
    return json.loads((disk / "trajectories" / f"step_{step:06d}.jsonl").read_text())["step"]


@ITS_THREAD_DIES
def test_curves_lack_what_a_full_disk_did_not_take_and_go_on_when_there_is_room(disk, backlog, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = TensorBoardSink(disk, keep_through_step=-1)
    numbers = MetricLog([JsonlSink(disk, keep_through_step=-1, backlog=backlog), curves])
    fill(disk)
    for step in range(1, 100_000):  # its thread writes when it sees fit
        curves.write(step, {"grad/norm": 1.0})
        if "tensorboard: points are missing" in caplog.text:
            break
    (disk / "ballast").unlink()
    numbers.write(step + 1, {"grad/norm": 0.5})
    numbers.close()
    last = EventAccumulator(str(disk / "tensorboard")).Reload().Scalars("grad/norm")[-1]
    assert (last.step, last.value) == (step + 1, 0.5) and "points are missing" in caplog.text


@ITS_THREAD_DIES
def test_an_end_on_a_full_disk_is_no_error_of_its_own(disk, caplog):
    numbers = MetricLog([TensorBoardSink(disk, keep_through_step=-1)])
    numbers.write(1, {"grad/norm": 1.0})
    fill(disk)
    numbers.write(2, {f"faults/{kind}": 1.0 for kind in range(500)})  # more than what is left of a page
    numbers.close()
    assert "No space left on device" in caplog.text
