"""Where learner ranks meet: a port that stays ours until it is listened on."""

import socket

import pytest

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


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

    from actors.learner import LearnerError

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
