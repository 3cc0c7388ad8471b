"""Attempts at a run: lost learners are rebuilt as long as that gets it further, and no longer."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from rl.checkpoint.checkpoint import open_checkpoint
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.saver import Saver
from rl.checkpoint.store import CheckpointStore
from rl.run.stop_signals import StopRequested
from rl.trajectory import Fault, RunState

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


class Learners:
    """Ranks whose attempts end at given steps by losing them; the last one at the end of the run."""

    def __init__(self, run, reached, monkeypatch, module):
        self.spawned, self.stopped, self.loaded, self._reached, self._run = 0, 0, [], list(reached), run
        monkeypatch.setattr(module, "spawn_learners", self._spawn)
        monkeypatch.setattr(module, "Attempt", self._attempt)

    def _spawn(self, *_, **__):
        self.spawned += 1
        return self

    def load(self, folder):
        self.loaded.append(folder.name)

    def stop(self):
        self.stopped += 1

    def _attempt(self, run, learners, found):
        return SimpleNamespace(train=self._train)

    def _train(self):
        from actors.pending_write import LearnerError

        step = self._reached.pop(0)
        if step is not None:
            self._run.step = step
            raise LearnerError("could not update the policy: a worker died")


@pytest.fixture
def run_of(monkeypatch, tmp_path):
    from rl.config.rewards import RewardTermConfig
    from rl.config.run import RunConfig
    from rl.run import rebuilds
    from rl.run.run import Run

    def make(*reached, saver=None):
        quiet = SimpleNamespace(
            take_faults=lambda **_: [], poll=None, wake=lambda _: None, set_weight_sync=lambda supply: None
        )
        saver = saver or SimpleNamespace(
            drain=lambda: None, newest=lambda: None, take_faults=lambda: [], copy_earlier=lambda: None
        )
        rollouts = SimpleNamespace(workers=quiet, restore=None, wake=lambda _: None)
        config, console = RunConfig(rewards={"answer": RewardTermConfig(fn="answer")}), Console(quiet=True)
        words = SimpleNamespace(pieces=None)
        writer = SimpleNamespace(run_dir=tmp_path, check=lambda: None)
        run = Run(config, console, writer, tmp_path, None, saver, (), (), words, rollouts, quiet, tmp_path / "a.log")
        return run, Learners(run, reached, monkeypatch, rebuilds)

    return make


def run_to_the_end(run, found=None):
    from rl.run.rebuilds import train_to_the_end

    train_to_the_end(run, found)


def test_learners_that_are_lost_again_and_again_are_rebuilt_as_long_as_the_run_gets_further(run_of, tmp_path):
    from rl.tracking.faults import fault_counts

    run, learners = run_of(*range(1, 20), None)
    run_to_the_end(run)
    assert learners.spawned == learners.stopped == 20
    assert fault_counts(tmp_path) == {"learner_lost": 19}


def test_learners_that_never_come_up_end_the_run_which_has_changed_nothing(run_of, monkeypatch, tmp_path):
    from actors.pending_write import LearnerError
    from rl.run import rebuilds

    def never(*_, **__):
        raise LearnerError("no room")

    run, _ = run_of()
    run.faults.append(Fault("worker_died", "rollout/0", "signal 9", "", 1.0, 2.0))
    monkeypatch.setattr(rebuilds, "spawn_learners", never)
    with pytest.raises(LearnerError, match="no room"):
        run_to_the_end(run)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_written_once_however_often_learners_are_rebuilt(run_of, tmp_path):
    run, _ = run_of(1, 2, None)
    run_to_the_end(run)
    assert (tmp_path / "config.yaml").is_file() and len(list((tmp_path / "configs").iterdir())) == 1


def test_a_run_that_another_process_has_taken_over_writes_nothing_more(run_of, tmp_path, saver):
    from rl.checkpoint.lease.lease import LeaseLostError

    def lost():
        raise LeaseLostError("lease.json: another process has taken over this run")

    run, _ = run_of(None, saver=saver)
    run.faults.append(Fault("worker_died", "rollout/0", "signal 9", "", 1.0, 2.0))
    writer = SimpleNamespace(run_dir=tmp_path, check=lost)
    overtaken = replace(run, writer=writer, has_begun=True)
    with pytest.raises(LeaseLostError):
        run_to_the_end(overtaken)
    assert list(tmp_path.iterdir()) == []


def test_learners_that_are_lost_over_the_same_step_end_the_run(run_of):
    from actors.pending_write import LearnerError

    run, learners = run_of(*[7] * 9)
    with pytest.raises(LearnerError, match="a worker died"):
        run_to_the_end(run)
    assert learners.spawned == 1 + 3 == learners.stopped


PATIENCE_S = 30.0  # nothing here takes a second


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, keep=2)


@pytest.fixture
def saver(store):
    return Saver(store, timeout_s=PATIENCE_S, max_failed=3)


def test_a_run_that_went_back_and_loses_its_learners_goes_back_again_and_not_to_what_it_abandoned(run_of, store, saver):
    for step in (50, 100):  # of an earlier process
        store.commit(store.begin(step), RunState(step, step, seed=7), "name: run\n")
    run, learners = run_of(51, None, saver=saver)
    run_to_the_end(run, open_checkpoint(store.published()[50]))  # as with resume=PATH
    assert learners.loaded == ["step_00000050"] * 2
    assert list(store.published()) == [100, 50]  # nothing goes before there is something newer


class Disk:
    """Where the ranks write; it fails so many times."""

    def __init__(self, failures):
        self.failures, self.tried = failures, 0

    def save(self, draft):
        return self

    def result(self, timeout_s):
        self.tried += 1
        if self.tried <= self.failures:
            raise OSError(28, "No space left on device")
        return []


@pytest.fixture
def stopped(run_of, saver, monkeypatch):
    """An attempt that saves when step 20 is reached, where the disk fails so many times, and is asked to stop later."""
    from rl.run import attempt as module

    def make(failures, *, saved_at=20, stopped_at=20):
        run, _ = run_of(saver=saver)
        monkeypatch.undo()  # the real attempt
        disk = Disk(failures)
        attempt = module.Attempt(run, disk, None)

        def train(schedule, *, save, **_):
            attempt._reached = RunState(saved_at, saved_at, seed=7)
            save(saved_at, saved_at)
            attempt._reached = RunState(stopped_at, stopped_at, seed=7)
            raise StopRequested(signal.SIGTERM)

        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "Reporter", lambda *_: SimpleNamespace(step=None))
        monkeypatch.setattr(module, "make_sinks", lambda *_, **__: [])
        return attempt, disk

    return make


def test_a_run_that_is_asked_to_stop_after_a_failed_save_saves_once_more(stopped, store):
    attempt, disk = stopped(failures=1)
    with pytest.raises(StopRequested):
        attempt.train()
    assert store.latest_valid().state.step == 20 and disk.tried == 2


def test_a_run_that_is_asked_to_stop_saves_what_it_reached_since_a_failed_save(stopped, store):
    attempt, disk = stopped(failures=1, stopped_at=23)
    with pytest.raises(StopRequested):
        attempt.train()
    assert store.latest_valid().state.step == 23 and disk.tried == 2


def test_a_run_that_is_asked_to_stop_where_it_has_saved_does_not_save_again(stopped, store):
    attempt, disk = stopped(failures=0)
    with pytest.raises(StopRequested):
        attempt.train()
    assert store.latest_valid().state.step == 20 and disk.tried == 1


def test_a_run_whose_disk_takes_nothing_when_it_is_asked_to_stop_says_so(stopped, store):
    attempt, disk = stopped(failures=2)
    with pytest.raises(CheckpointError, match=r"the last checkpoint could not be saved: .*No space left"):
        attempt.train()
    assert disk.tried == 2 and store.latest_valid() is None


def test_a_run_that_ends_by_an_error_keeps_it_though_its_faults_cannot_be_written(run_of, monkeypatch, caplog):
    from actors.pending_write import LearnerError
    from rl.run import run as module

    def full(*_):
        raise OSError(28, "No space left on device")

    run, _ = run_of(*[7] * 4)
    run.faults.append(Fault("learner_lost", "learner", "signal 9", "", 1.0, 2.0))
    monkeypatch.setattr(module, "write_faults", full)
    with pytest.raises(LearnerError, match="a worker died"):
        run_to_the_end(run)
    assert "faults.jsonl: could not be written: No space left on device" in caplog.text


@pytest.mark.parametrize(("steps_under_way", "counted"), [((1,), 7.0 + 30.0), ((), 7.0)])
def test_what_engines_do_for_the_next_step_beside_an_evaluation_counts_for_that_step(
    run_of, monkeypatch, steps_under_way, counted
):
    from rl.run import attempt as module

    run, _ = run_of()
    monkeypatch.undo()  # the real attempt
    requests = iter([30.0, 7.0])  # as the evaluation ends, and as the next step does
    run.rollouts.workers.stats = lambda: {"engine/requests": next(requests), "memory/rollout": 5.0}
    run.rollouts.generate, run.held_out, run.rewards.score_all = lambda *_, **__: [], ("task",), lambda *_, **__: []
    run.rewards.refuse_too_many_failures, run.saver.is_best, run.saver.poll = id, lambda *_: False, dict
    monkeypatch.setattr(run.sampler, "_under_way", dict.fromkeys(steps_under_way))
    monkeypatch.setattr(module, "held_out_metrics", lambda *_, **__: {})
    monkeypatch.setattr(module, "evaluation_line", lambda *_: "")
    run.failures = SimpleNamespace(add=lambda *_: [])
    attempt = module.Attempt(run, SimpleNamespace(memory_mib=lambda: 1.0), None)
    assert not attempt._evaluate(1, SimpleNamespace(write=lambda *_: None, show=lambda *_: None))
    numbers = attempt._workers(2)
    assert (numbers["engine/requests"], numbers["memory/rollout"]) == (counted, 5.0)
