"""Real rank processes write a checkpoint beside their work; learners here are small, the ranks and their pipes real."""

import os
import threading

import pytest

from rl.checkpoint.manifest import CheckpointError, file_record
from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import RunState

pytestmark = pytest.mark.ray
TIMEOUT_S = 60.0


def make_learner(gate, rank, world_size, **_place):
    """A learner of one number; what it captured is written once somebody opens the other end of the pipe `gate`."""
    from pathlib import Path

    import torch

    from rl.checkpoint.snapshot import CapturedState, Snapshot

    class Gated(CapturedState):
        __slots__ = ()

        def write(self, folder):
            if gate:
                Path(f"{gate}.{rank}").read_bytes()  # until it is opened and closed at the other end
            super().write(folder)

    class Learner:
        def __init__(self):
            self.weight = torch.zeros(3)

        def supervise(self, samples):
            self.weight += 1.0  # in place, as an optimizer does
            return {"weight": float(self.weight[0])}

        def capture(self):
            state = Gated(f"rank_{rank}.safetensors", {"master": self.weight.clone()}, {"steps": "1"})
            return Snapshot(state, lambda policy: policy.mkdir(exist_ok=True) or [])

    return Learner()


@pytest.fixture
def gate(tmp_path):
    for rank in range(2):
        os.mkfifo(tmp_path / f"gate.{rank}")
    return tmp_path / "gate"


def open_gates(gate):
    for rank in range(2):
        os.close(os.open(f"{gate}.{rank}", os.O_WRONLY))


@pytest.fixture
def group_of(ray_cluster, monkeypatch):
    """`group_of(gate)`: two ranks; without a gate they write at once."""
    from functools import partial

    import cloudpickle

    from actors.learner_group import LearnerGroup

    started = []

    def start(gate=None):
        factory = cloudpickle.loads(cloudpickle.dumps(make_learner))
        factory.__module__ = "__main__"  # carried to the ranks by value
        group = LearnerGroup(
            partial(factory, str(gate) if gate else None),
            2,
            lambda rank: {"num_cpus": 0.1},
            start_timeout_s=TIMEOUT_S,
            timeout_s=TIMEOUT_S,
        )
        started.append(group)
        return group

    yield start
    monkeypatch.setattr("actors.learner_group.WRITING_GRACE_S", 0.0)  # where a gate was never opened
    for group in started:
        group.stop()


def test_ranks_go_on_learning_while_they_write_and_write_what_they_were(group_of, gate, tmp_path):
    from safetensors.torch import load_file

    group, draft = group_of(gate), tmp_path / "draft"
    draft.mkdir()
    group.supervise([])

    pending = group.save(draft)  # returns though nobody has opened the gates
    assert [group.supervise([])["weight"] for _ in range(3)] == [2.0, 3.0, 4.0]
    assert not list(draft.iterdir())
    open_gates(gate)

    written = pending.result(TIMEOUT_S)
    assert [file.name for file in written] == ["rank_0.safetensors", "rank_1.safetensors"]
    for file in written:
        assert file == file_record(draft, draft / file.name)
        assert load_file(draft / file.name)["master"].tolist() == [1.0, 1.0, 1.0]


def test_ranks_that_do_not_write_in_time_are_not_waited_for(group_of, gate, tmp_path):
    from actors.pending_write import LearnerError

    pending = group_of(gate).save(tmp_path)
    with pytest.raises(LearnerError, match="could not write a checkpoint: no answer within"):
        pending.result(0.2)


def test_a_rank_that_dies_while_it_writes_fails_the_save_not_the_run(group_of, gate, ray_cluster, tmp_path, caplog):
    group, store = group_of(gate), CheckpointStore(tmp_path / "run")
    saver = Saver(store, timeout_s=TIMEOUT_S, max_failed=3)
    saver.save(group.save, Contents(RunState(10, 10, seed=7), "name: run\n"))
    ray_cluster.kill(group.ranks[1])
    with pytest.raises(CheckpointError, match="could not write a checkpoint: a worker died"):
        saver.flush()
    assert saver.poll()["save/failed"] == 1.0 and "the run goes on" in caplog.text
    assert store.latest_valid() is None and not list(store.folder.glob(".draft_*"))

    saver.save(group_of().save, Contents(RunState(10, 10, seed=7), "name: run\n"))  # the learners built anew
    saver.flush()
    assert store.latest_valid().state.step == 10


def test_ranks_are_not_killed_in_the_middle_of_a_checkpoint(group_of, gate, tmp_path):
    """A leg of the run ends and its learners are stopped, while the last save is under way."""
    group, store = group_of(gate), CheckpointStore(tmp_path / "run")
    saver = Saver(store, timeout_s=TIMEOUT_S, max_failed=3)
    saver.save(group.save, Contents(RunState(10, 10, seed=7), "name: run\n"))
    opener = threading.Thread(target=open_gates, args=(gate,))
    opener.start()
    group.stop()
    opener.join(TIMEOUT_S)
    saver.flush()
    assert store.latest_valid().state.step == 10


def test_a_rank_whose_disk_fails_says_where_and_what_to_do(group_of, tmp_path):
    from actors.pending_write import LearnerError

    pending = group_of().save(tmp_path / "nowhere")
    with pytest.raises(LearnerError, match=r"CheckpointError: .*nowhere: could not be written: .*No such file"):
        pending.result(TIMEOUT_S)
    pending = group_of().save(tmp_path)  # the next one is not held up
    assert len(pending.result(TIMEOUT_S)) == 2
