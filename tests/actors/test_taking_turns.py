"""Engines and learners of the same GPUs: the order in which each gives its memory up and takes it back."""

import pytest

from rl.trajectory import LearnerUpdate

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


class Both:
    """Engines, learners and weights; they write down what they are told, and refuse what would not fit into the GPU."""

    def __init__(self, steps_taken=1):
        self.diary, self._steps_taken = [], steps_taken
        self.engines_hold, self.learners_hold = {"weights", "kv_cache"}, False
        self.pushed = 0

    def _tell(self, what):
        assert not (self.learners_hold and "kv_cache" in self.engines_hold), f"no room: {what}"
        self.diary.append(what)

    def sleep(self):
        self.engines_hold = set()
        self._tell("engines sleep")

    def wake(self, memory):
        self.engines_hold |= {str(memory)}
        self._tell(f"engines wake {memory}")

    def reload(self):
        self.learners_hold = True
        self._tell("learners reload")

    def offload(self, *, states):
        self.learners_hold = False
        self._tell("learners offload" if states else "learners leave")

    def supply_weights(self):
        assert "weights" in self.engines_hold
        self._tell("engines are given what they lack")

    def receive(self, scored):
        assert "kv_cache" in self.engines_hold  # they may have to sample one of them again
        self._tell("receive")
        return scored

    def update(self, *, step, version):
        assert self.learners_hold
        self._tell(f"learn {step} v{version}")
        return LearnerUpdate({}, (), self._steps_taken)

    def push(self):
        assert "weights" in self.engines_hold
        self._tell("push")
        self.pushed += 1
        return self.pushed


@pytest.fixture
def turns():
    from actors.taking_turns import TakingTurns

    def make(both, offloads=True):
        return TakingTurns(both, both, both, offloads=offloads)

    return make


LEARNING = ["receive", "engines sleep", "learners reload", "learn 3 v7"]
BACK = ["learners offload", "engines wake kv_cache"]


def test_a_step_goes_from_the_engines_to_the_learners_and_back_with_the_push(turns):
    both = Both()
    taking = turns(both)
    taking.receive([])
    taking.update(step=3, version=7)
    assert taking.push() == 1
    assert both.diary == [*LEARNING, "engines wake weights", "push", *BACK]


def test_a_step_in_which_nothing_was_learned_goes_back_without_a_push(turns):
    both = Both(steps_taken=0)
    taking = turns(both)
    taking.receive([])
    taking.update(step=3, version=7)
    assert both.diary == [*LEARNING, "engines wake weights", "engines are given what they lack", *BACK]


def test_where_there_is_room_learners_leave_with_their_states_where_they_are(turns):
    both = Both()
    turns(both, offloads=False).push()
    assert both.diary == ["engines wake weights", "push", "learners leave", "engines wake kv_cache"]


def test_a_run_begins_with_learners_on_the_gpu_and_engines_asleep(turns):
    both = Both()
    both.sleep()
    both.learners_hold = True  # as they come up
    assert turns(both).push() == 1
    assert both.diary[1:] == ["engines wake weights", "push", *BACK]
