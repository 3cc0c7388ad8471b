"""Who meets whom over which link, when links are opened anew, and what becomes of a transfer that failed."""

from types import SimpleNamespace

import pytest

from rl.config.learner import WeightSyncConfig

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

SUMS = {"w": "sum"}


class Engine:
    """Remembers as whom it was told to meet a sender, and where."""

    def __init__(self, index):
        self.met = []
        actor = SimpleNamespace(open_link=SimpleNamespace(remote=lambda point, first: self.met.append((point, first))))
        self.slot = SimpleNamespace(name=f"rollout/{index}", index=index, worker=SimpleNamespace(actor=actor))


class Learners:
    """Ranks that listen on port 100 + rank."""

    def __init__(self, ranks, sent=SUMS):
        self.processes, self.sent, self.aborted = range(ranks), sent, 0
        self.points = []

    def listen(self, ranks):
        return {rank: ("10.0.0.1", 100 + rank) for rank in ranks}

    def open_links(self, points):
        self.points.append(points)
        return dict.fromkeys(points, "")

    def described_weights(self, bucket_bytes, *, trainable_only):
        return [("w",)]

    def send_weights(self, bucket_bytes, *, trainable_only, check):
        return dict.fromkeys(self.points[-1], self.sent)


class Workers:
    """Everything arrives, but at the engines in `failing`."""

    def __init__(self):
        self.failing = ()

    def receive_weights(self, buckets, version, slots):
        self.asked = slots
        return {}

    def collect_push(self, calls, version, *, timeout_s):
        if version is None:
            return {}, {}
        good = {slot.name: [] for slot in self.asked if slot.name not in self.failing}
        return good, {name: "the link is gone" for name in self.failing}


@pytest.fixture
def transfer():
    from actors.device_transfer import DeviceTransfer

    def make(transport, engines, ranks=1, shards=1, sent=SUMS):
        made = SimpleNamespace(engines=[Engine(index) for index in range(engines)], learners=Learners(ranks, sent))
        made.workers = Workers()
        made.transfer = DeviceTransfer(made.learners, made.workers, WeightSyncConfig(), transport, shards)
        made.send = lambda version: made.transfer.send([e.slot for e in made.engines], version, everything=True)
        return made

    return make


def test_over_a_group_every_worker_of_every_engine_meets_rank_0(transfer):
    made = transfer("gloo", engines=3, ranks=2, shards=4)
    assert made.send(1)[1:] == (SUMS, {f"rollout/{index}": [] for index in range(3)})
    ((point,),) = [points.values() for points in made.learners.points]
    assert (point.transport, point.port, point.members) == ("gloo", 100, 13)
    assert [engine.met for engine in made.engines] == [[(point, 1)], [(point, 5)], [(point, 9)]]


def test_through_shared_memory_every_rank_serves_the_engines_beside_it(transfer):
    made = transfer("ipc", engines=3, ranks=2)
    made.send(1)
    (points,) = made.learners.points
    assert [(rank, point.port, point.members) for rank, point in points.items()] == [(0, 100, 3), (1, 101, 2)]
    assert [engine.met for engine in made.engines] == [[(points[0], 1)], [(points[1], 1)], [(points[0], 2)]]


def test_a_rank_beside_which_no_engine_stands_has_no_link(transfer):
    made = transfer("ipc", engines=1, ranks=2)
    made.send(1)
    assert [list(points) for points in made.learners.points] == [[0]]


def test_a_link_serves_until_the_engines_change(transfer):
    made = transfer("gloo", engines=2)
    made.send(1)
    made.send(2)
    assert len(made.learners.points) == 1
    made.engines[1] = Engine(1)  # another took its place
    made.send(3)
    assert len(made.learners.points) == 2


@pytest.mark.parametrize("sent", [SUMS, "a receiver is gone"])
def test_a_transfer_that_failed_on_one_side_failed_and_the_next_opens_another_link(transfer, sent):
    from actors.device_transfer import TransferError

    made = transfer("gloo", engines=2, sent=sent)
    made.workers.failing = ("rollout/1",) if sent is SUMS else ()
    with pytest.raises(TransferError, match="rollout/1: the link is gone" if sent is SUMS else "rank 0: a receiver"):
        made.send(1)
    made.workers.failing, made.learners.sent = (), SUMS
    made.send(2)
    assert len(made.learners.points) == 2
