"""Legs of a run: lost learners are built anew as long as that gets it further, and no longer."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


class Learners:
    """Ranks whose legs end at given steps by losing them; the last one in peace."""

    def __init__(self, run, reached, monkeypatch, module):
        self.spawned, self.stopped, self._reached, self._run = 0, 0, list(reached), run
        monkeypatch.setattr(module, "spawn_learners", self._spawn)
        monkeypatch.setattr(module, "Leg", self._leg)

    def _spawn(self, *_, **__):
        self.spawned += 1
        return self

    def load(self, folder):
        pass

    def stop(self):
        self.stopped += 1

    def _leg(self, run, learners, found):
        return SimpleNamespace(go=self._go)

    def _go(self):
        from actors.learner import LearnerError

        step = self._reached.pop(0)
        if step is not None:
            self._run.step = step
            raise LearnerError("could not update the policy: a worker died")


@pytest.fixture
def run_of(monkeypatch, tmp_path):
    from rl import run as module
    from rl.config import RewardTermConfig, RunConfig

    def make(*reached):
        quiet = SimpleNamespace(take_faults=lambda **_: [], attend=None)
        saver = SimpleNamespace(drain=lambda: None, newest=lambda: None, take_faults=lambda: [])
        rollouts = SimpleNamespace(crew=quiet, restore=None)
        config = RunConfig(rewards={"answer": RewardTermConfig(fn="answer")})
        run = module.Run(config, None, tmp_path, tmp_path, None, saver, (), (), None, rollouts, quiet)
        return run, Learners(run, reached, monkeypatch, module)

    return make


def test_learners_that_are_lost_again_and_again_are_built_anew_as_long_as_the_run_gets_further(run_of, tmp_path):
    from rl.faults import fault_counts

    run, learners = run_of(*range(1, 20), None)
    run.train(None)
    assert learners.spawned == learners.stopped == 20
    assert fault_counts(tmp_path) == {"learner_lost": 19}


def test_learners_that_are_lost_over_the_same_step_end_the_run(run_of):
    from actors.learner import LearnerError

    run, learners = run_of(*[7] * 9)
    with pytest.raises(LearnerError, match="a worker died"):
        run.train(None)
    assert learners.spawned == 1 + 3 == learners.stopped
