"""Where learner ranks meet: a port that stays ours until it is listened on; and who is given what."""

import socket

import pytest

from rl.trajectory import (
    AnswerKind,
    Completion,
    LearnerUpdate,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TrainingSample,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

pytestmark = pytest.mark.ray


@pytest.fixture
def worker():
    from actors.learner import LearnerWorker

    return LearnerWorker(rank=0)


def test_ranks_can_meet_at_the_port_that_was_reserved_for_them(worker, ray_cluster):
    from torch.distributed import TCPStore

    met = []

    def make_learner(rank, world_size, master_addr, master_port):
        met.append(TCPStore("127.0.0.1", master_port, world_size, is_master=rank == 0))
        return "learner"

    worker.start(make_learner, 1, worker.address())
    assert met[0].port > 0 and worker._learner == "learner"


def test_a_port_that_is_taken_all_the_same_is_named_with_the_remedy(worker, ray_cluster):
    from torch.distributed import TCPStore

    from actors.pending_write import LearnerError

    def make_learner(rank, world_size, master_addr, master_port):
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("", master_port))
            thief.listen()
            TCPStore("127.0.0.1", master_port, world_size, is_master=True)

    with pytest.raises(LearnerError, match=r"no free port: .* start again"):
        worker.start(make_learner, 1, worker.address())


def test_a_learner_that_cannot_be_built_says_why_itself(worker, ray_cluster):
    def make_learner(**_place):
        raise RuntimeError("learner.deepspeed_config")

    with pytest.raises(RuntimeError, match=r"^learner\.deepspeed_config$"):
        worker.start(make_learner, 1, ("127.0.0.1", 1))


class Recorder:
    """A learner that learns nothing: it says whose groups it was given."""

    def __init__(self, rank, world_size, master_addr, master_port):
        self._rank = rank

    def learn(self, scored, version, step):
        seen = tuple((one.group.task.task_id, self._rank) for one in scored)
        return LearnerUpdate({"step": float(step)}, seen, steps_taken=1)

    def supervise(self, samples):
        return {"loss/nll": float(sum(sample.token_ids[0] for sample in samples))}


@pytest.fixture
def ranks(ray_cluster):
    from actors.learner_group import LearnerGroup

    options = {"num_cpus": 0.1}
    group = LearnerGroup(
        Recorder,
        4,
        lambda rank: options,
        start_timeout_s=60,
        timeout_s=60,
        sequence_parallel=2,
        recorded_trajectories=9,
    )
    yield group
    group.stop()


def group_of(name):
    from actors.groups import held_by_driver
    from rl.group_summary import RolloutOrigin

    answer = Turn((1, 2), Completion((3,), (-0.5,), "stop", 0), Segment.REASONING)
    task = VideoTask(name, "/clip.mp4", "?", "B", AnswerKind.LETTER)
    group = TrajectoryGroup(task, (Trajectory((answer,), StopReason.ANSWERED),), None)
    return ScoredGroup(held_by_driver(group, RolloutOrigin(0, 0, False, 0.0, 0.0)), (SegmentRewards(None, 1.0, {}),))


def test_ranks_that_share_a_sequence_are_given_the_same_samples(ranks):
    groups = [group_of(f"task {index}") for index in range(4)]
    sample = TrainingSample((3,), (2,), (0,), (-0.5,), (1.0,), (True,), (0,), ())

    assert ranks.receive(groups) == groups
    update = ranks.update(step=3, version=0)

    assert update.metrics == {"step": 3.0}  # credit may go by it
    assert [task for task, _ in update.logprobs_PG] == ["task 0", "task 1", "task 2", "task 3"]
    assert sorted(rank for _, rank in update.logprobs_PG) == [0, 0, 2, 2]  # the first of each pair answers for it
    assert ranks.supervise([sample, sample, sample, sample]) == {"loss/nll": 6.0}  # two of four
