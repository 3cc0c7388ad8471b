"""A run waits for the copy of a checkpoint and for nothing else; a save that fails is not the end of it."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from rl.checkpoint import saver as saving
from rl.checkpoint.checkpoint import open_checkpoint
from rl.checkpoint.manifest import CheckpointError, file_record, read_manifest
from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import RunState, WrittenFile

TIMEOUT_S = 30.0  # of a test; nothing here takes a second


class Learners:
    """Weights that move, and a writer that waits until it is let go."""

    def __init__(self):
        self.weights = bytearray(b"weights after step 10")
        self.let_go = threading.Event()
        self.fails = None  # an error to raise instead of writing
        self._writing = ThreadPoolExecutor(1)

    def save(self, draft):
        return Written(self._writing.submit(self._write, draft, bytes(self.weights)))

    def _write(self, draft, copied):
        assert self.let_go.wait(TIMEOUT_S)
        if self.fails:
            raise self.fails
        path = draft / "rank_0.safetensors"
        path.write_bytes(copied)
        return [file_record(draft, path)]


class Written:
    """As actors.pending_write.PendingWrite."""

    def __init__(self, future):
        self._future = future

    def result(self, timeout_s):
        return self._future.result(timeout_s)


def contents(step, value=None):
    return Contents(RunState(step, step, seed=7), "name: run\n", value)


@pytest.fixture
def learners():
    learners = Learners()
    yield learners
    learners.let_go.set()


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run", keep=2, best_metric="held_out/accuracy")


@pytest.fixture
def saver(store):
    return Saver(store, timeout_s=TIMEOUT_S, max_failed=3)


def test_a_save_returns_after_the_copy_and_what_the_run_does_next_does_not_leak_into_it(saver, store, learners):
    saver.save(learners.save, contents(10))
    assert store.latest_valid() is None  # nothing is written yet, and the run is here already
    learners.weights[-2:] = b"99"
    learners.let_go.set()
    saver.flush()
    assert (store.latest_valid().folder / "rank_0.safetensors").read_bytes() == b"weights after step 10"


def test_a_manifest_made_from_what_writers_vouch_for_is_what_lies_on_the_disk(saver, store, learners):
    learners.let_go.set()
    saver.save(learners.save, contents(10, value=0.5))
    saver.flush()
    folder = store.latest_valid().folder
    records = {record.name: record for record in read_manifest(folder)}
    assert sorted(records) == ["config.yaml", "rank_0.safetensors", "score.json", "state.json"]
    for name, record in records.items():
        content = (folder / name).read_bytes()
        assert record == WrittenFile(name, len(content), sha256(content).hexdigest())


def test_a_file_that_a_rank_wrote_where_the_driver_does_not_see_it_is_no_checkpoint(saver, store):
    class Elsewhere:
        def result(self, timeout_s):
            return [WrittenFile("rank_1.safetensors", 4, "0" * 64)]

    saver.save(lambda draft: Elsewhere(), contents(10))
    with pytest.raises(CheckpointError, match=r"rank_1\.safetensors: written by a rank.*every node sees"):
        saver.flush()
    assert store.latest_valid() is None and not list(store.folder.glob(".draft_*"))


def test_numbers_of_a_save_are_reported_once_when_it_is_published(saver, learners):
    saver.save(learners.save, contents(10))
    held_up = saver.poll()
    assert sorted(held_up) == ["save/copy_seconds", "save/wait_seconds"] and held_up["save/copy_seconds"] > 0
    learners.let_go.set()
    saver.flush()
    published = saver.poll()
    assert published["save/bytes"] == len(b"weights after step 10") and published["save/write_seconds"] > 0
    assert saver.poll() == {}


def test_only_one_save_is_under_way_the_next_waits_for_it(saver, store, learners):
    saver.save(learners.save, contents(10))
    threading.Timer(0.05, learners.let_go.set).start()
    saver.save(learners.save, contents(20))
    assert 10 in store.published()  # published before the second began
    assert saver.poll()["save/wait_seconds"] > 0.01
    saver.flush()
    assert list(store.published()) == [20, 10]


def test_a_save_that_does_not_end_in_time_has_failed_and_no_second_one_is_begun_beside_it(store, learners, caplog):
    saver = Saver(store, timeout_s=0.05, max_failed=3)
    saver.save(learners.save, contents(10))
    with pytest.raises(CheckpointError, match="the last checkpoint could not be saved"):
        saver.flush()  # the ranks' deadline passes
    assert saver.poll()["save/failed"] == 1.0
    assert "step 10 could not be saved (1 of 3 in a row; the run goes on" in caplog.text


def test_a_disk_that_never_answers_is_not_given_a_second_save_and_stops_the_run(store, learners, monkeypatch):
    monkeypatch.setattr(saving, "PUBLISHING_S", 0.01)

    class Hung:
        def result(self, timeout_s):
            learners.let_go.wait(TIMEOUT_S)  # ignores its deadline
            return []

    saver = Saver(store, timeout_s=0.01, max_failed=3)
    for step in (10, 20, 30):  # the first is under way, the next two find it so
        saver.save(lambda draft: Hung(), contents(step))
    assert saver.poll()["save/failed"] == 2.0 and len(list(store.folder.glob(".draft_*"))) == 1
    with pytest.raises(CheckpointError, match=r"3 saves in a row.*still under way; the disk or a rank does not answer"):
        saver.save(lambda draft: Hung(), contents(40))


def test_a_failed_save_is_a_warning_and_the_next_one_tries_again(saver, store, learners, caplog):
    learners.let_go.set()
    learners.fails = OSError(28, "No space left on device", "/disk/rank_0.safetensors")
    saver.save(learners.save, contents(10))
    learners.fails = None
    saver.save(learners.save, contents(20))  # waits for the first, which has failed
    saver.flush()
    assert "step 10 could not be saved (1 of 3 in a row" in caplog.text and "No space left" in caplog.text
    assert list(store.published()) == [20] and saver.poll()["save/failed"] == 1.0
    assert not list(store.folder.glob(".draft_*"))  # the room it took is free again
    (fault,) = saver.take_faults()
    assert fault.kind == "save_failed" and "No space left" in fault.cause and saver.take_faults() == []


def test_too_many_failures_in_a_row_stop_the_run_with_the_last_cause(saver, learners):
    learners.let_go.set()
    learners.fails = OSError(30, "Read-only file system")
    saver.save(learners.save, contents(10))
    saver.save(learners.save, contents(20))
    saver.save(learners.save, contents(30))
    with pytest.raises(CheckpointError, match=r"3 saves in a row.*max_failed_saves=3.*step 30.*Read-only file system"):
        while True:  # as a run does after every step; the third failure is told as soon as it is known
            saver.poll()


def test_failures_in_a_row_are_counted_from_the_last_save_that_worked(saver, learners):
    learners.let_go.set()
    for step, error in ((10, OSError("full")), (20, OSError("full")), (30, None), (40, OSError("full")), (50, None)):
        learners.fails = error
        saver.save(learners.save, contents(step))
        with_failure = error is not None
        if with_failure:
            with pytest.raises(CheckpointError, match="full"):
                saver.flush()
        else:
            saver.flush()
    assert saver.poll()["save/failed"] == 3.0


def test_the_last_save_of_a_run_must_not_fail(store, learners):
    learners.let_go.set()
    learners.fails = OSError("the disk is gone")
    with (
        pytest.raises(CheckpointError, match="the last checkpoint could not be saved: the disk is gone"),
        Saver(store, timeout_s=TIMEOUT_S, max_failed=3) as saver,
    ):
        saver.save(learners.save, contents(10))


def test_a_run_that_ends_by_an_error_still_publishes_what_is_under_way_and_keeps_its_own_error(store, learners):
    with (
        pytest.raises(KeyError, match="the run's own"),
        Saver(store, timeout_s=TIMEOUT_S, max_failed=3) as saver,
    ):
        saver.save(learners.save, contents(10))
        learners.let_go.set()
        raise KeyError("the run's own")
    assert store.latest_valid().state.step == 10


def test_a_run_that_ends_by_an_error_is_not_buried_under_a_failed_save(store, learners, caplog):
    learners.let_go.set()
    learners.fails = OSError("the disk is gone")
    with pytest.raises(KeyError, match="own"), Saver(store, timeout_s=TIMEOUT_S, max_failed=3) as saver:
        saver.save(learners.save, contents(10))
        raise KeyError("the run's own")
    assert "the disk is gone" in caplog.text


def test_learners_that_fail_to_copy_leave_no_draft_and_say_it_themselves(saver, store):
    def dead(draft):
        raise RuntimeError("could not copy the state: a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        saver.save(dead, contents(10))
    assert not list(store.folder.glob(".draft_*"))
    saver.flush()  # nothing is under way, and no save has failed: the learners have


def test_a_mistake_of_ours_is_not_taken_for_a_full_disk(saver, learners):
    learners.let_go.set()
    learners.fails = TypeError("a mistake")
    saver.save(learners.save, contents(10))
    with pytest.raises(TypeError, match="a mistake"):
        saver.flush()


def test_a_disk_too_full_to_begin_counts_as_a_failed_save(saver, store, learners, monkeypatch, caplog):
    full = CheckpointError("a checkpoint needs 9 MiB, 2 MiB are free; make room")
    monkeypatch.setattr(store, "begin", lambda step: (_ for _ in ()).throw(full))
    saver.save(learners.save, contents(10))
    assert saver.poll()["save/failed"] == 1.0 and "make room" in caplog.text


def test_a_run_that_went_back_does_not_go_on_in_the_future_it_left(saver, store, learners):
    learners.let_go.set()
    for step in (50, 100):  # of an earlier process; this one was started from step 50
        store.commit(store.begin(step), RunState(step, step, seed=7), "name: run\n")
    assert saver.newest() is None and not saver.has_published(100)
    saver.save(learners.save, contents(60))
    saver.flush()
    assert saver.newest().state.step == 60 and saver.has_published(60)


def test_a_checkpoint_that_was_damaged_meanwhile_is_repeated_like_the_steps_before_it(saver, store, learners):
    learners.let_go.set()
    for step in (10, 20):
        saver.save(learners.save, contents(step))
        saver.flush()
    (store.published()[20] / "rank_0.safetensors").write_bytes(b"torn")
    assert saver.newest().state.step == 10
    assert saver.has_published(10) and not saver.has_published(20)


def test_the_one_being_saved_competes_for_the_best(saver, store, learners):
    saver.save(learners.save, contents(10, value=0.8))
    assert not saver.is_best(20, 0.7) and not saver.is_best(20, 0.8) and saver.is_best(20, 0.9)
    assert saver.is_best(10, 0.5)  # step 10 once more: only what came before it counts


def test_every_number_of_a_save_is_declared():
    from rl.tracking.metrics import describe

    for name in ("copy_seconds", "wait_seconds", "write_seconds", "bytes", "failed", "remote_seconds", "remote_failed"):
        assert describe(f"save/{name}")[0]


def test_the_checkpoint_of_a_run_that_goes_on_is_whole(saver, store, learners, caplog):
    """Twenty saves, one after the other, while the weights move all the time."""
    learners.let_go.set()
    with caplog.at_level(logging.WARNING):
        for step in range(1, 21):
            learners.weights[-2:] = b"%02d" % step
            saver.save(learners.save, contents(step))
            learners.weights[-2:] = b"xx"
        saver.flush()
    assert caplog.text == "" and list(store.published()) == [20, 19]
    for step, folder in store.published().items():
        assert (open_checkpoint(folder).folder / "rank_0.safetensors").read_bytes()[-2:] == b"%02d" % step
