"""The supervised stage, stopped and continued: it takes the steps that are left, and nothing is left of its saves.

Learners are one number here, that every step changes by what it is shown; with DeepSpeed:
tests/rl/learner/test_learner.py (a saved run goes on bit for bit).
"""

from types import SimpleNamespace

import pytest
from rich.console import Console

from rl.checkpoint.store import CheckpointStore
from rl.config.file import load_config
from tests.rl.run.test_workers import QUICKSTART

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

STEPS, SAVE_EVERY = 9, 2


class Learners:
    """A weight that is no sum: the order of steps shows in it. Lost at the step that is told."""

    def __init__(self, lost_at=None):
        self.weight, self.taken, self._lost_at = 1, 0, lost_at

    def supervise(self, samples):
        from actors.pending_write import LearnerError

        if self.taken == self._lost_at:
            raise LearnerError("could not take a supervised step: a worker died")
        self.taken += 1
        self.weight = (31 * self.weight + sum(samples)) % 1_000_003
        return {"loss/nll": 1.0}

    def save(self, folder):
        (folder / "weight").write_text(str(self.weight))
        return SimpleNamespace(result=lambda timeout_s: [])

    def load(self, folder):
        self.weight = int((folder / "weight").read_text())

    def export_policy(self, folder):
        (folder / "weight").write_text(str(self.weight))

    def stop(self):
        pass


class Feed:
    def __init__(self, pool, traces):
        pass

    def samples(self, batches):
        yield from batches


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Runs the stage with learners that are lost at the given steps of their own, one after another."""
    from rl.run import cold_start, initial_policy, supervised

    settings = [f"cache_dir={tmp_path}", f"cold_start.steps={STEPS}", f"cold_start.save_every={SAVE_EVERY}"]
    config = load_config([QUICKSTART], [*settings, "cold_start.batch_size=4"])
    monkeypatch.setattr(supervised, "SampleFeed", Feed)
    monkeypatch.setattr(supervised, "spawn_samples", lambda *_: SimpleNamespace(stop=lambda: None))
    monkeypatch.setattr(cold_start, "require_loadable", lambda *_: None)
    monkeypatch.setattr(initial_policy, "prepare_traces", lambda *_: ["a", "b", "c", "d", "e"])
    monkeypatch.setattr(initial_policy, "cold_start_home", lambda *_: tmp_path / "cold-start")

    def run(*lost_at):
        spawned = [Learners(step) for step in (*lost_at, None)]
        waiting = list(spawned)
        monkeypatch.setattr(supervised, "spawn_learners", lambda *_, **__: waiting.pop(0))
        home = initial_policy.cold_started_policy(config, tmp_path, None, Console(quiet=True))
        return (home / "weight").read_text(), [one.taken for one in spawned]

    run.home = tmp_path / "cold-start"
    return run


def weight_of_a_straight_run():
    from rl.learner.sft import batches

    weight = 1
    for indices in batches(5, steps=STEPS, batch_size=4, seed=load_config([QUICKSTART]).cold_start.seed):
        weight = (31 * weight + sum(indices)) % 1_000_003
    return str(weight)


@pytest.mark.parametrize(
    ("lost_at", "taken"),
    [
        ((), [9]),
        ((1,), [1, 9]),  # nothing was saved yet
        ((5,), [5, 5]),  # from the checkpoint of four steps
        ((5, 3), [5, 3, 3]),  # and from that of six
    ],
)
def test_what_is_left_is_done_and_the_policy_is_that_of_a_straight_run(stage, lost_at, taken):
    assert stage(*lost_at) == (weight_of_a_straight_run(), taken)


def test_nothing_but_the_policy_stays(stage, tmp_path):
    stage(5)
    assert [path.name for path in tmp_path.iterdir()] == ["cold-start"]


def test_another_process_goes_on_where_the_first_was_killed(stage):
    from actors.pending_write import LearnerError

    with pytest.raises(LearnerError):
        stage(5, 0)  # lost once more before its first step: that would never end
    assert CheckpointStore(stage.home.with_name("cold-start.progress")).latest_valid().state.step == 4
    assert stage() == (weight_of_a_straight_run(), [5])


def test_where_another_process_makes_the_same_it_is_made_without_saving(stage, tmp_path):
    from rl.checkpoint.lease.folder import FolderLease
    from rl.checkpoint.lease.holder import this_process
    from rl.checkpoint.lease.lease import Lease

    progress = tmp_path / "cold-start.progress"
    with Lease(FolderLease(progress), this_process()):
        assert stage(5) == (weight_of_a_straight_run(), [5, 9])
        assert [path.name for path in progress.iterdir()] == ["lease.json"]
