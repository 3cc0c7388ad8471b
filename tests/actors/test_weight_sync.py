"""A push: everything at first, then what trains; what an engine holds that differs is refused."""

from types import SimpleNamespace

import pytest

from rl.config.learner import WeightSyncConfig

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

FROZEN, TRAINED = ("vision.a", "vision.b"), ("text.a", "text.b", "text.c", "text.d", "text.e")


def checksum(name):
    return f"checksum of {name}"


class Learners:
    """Parameters without values; the first two are frozen."""

    def __init__(self):
        self.exports, self.has_moved = [], False

    def export(self, bucket_bytes, *, trainable_only):
        from actors.weight_buckets import WeightBucket
        from rl.weight_transfer.description import WeightTensor

        self.exports.append(trainable_only)
        names = TRAINED if trainable_only else FROZEN + TRAINED
        return [WeightBucket((WeightTensor(name, "float32", (2,)),), (checksum(name),), None) for name in names]


class Engines:
    """Two engines; the second holds other values of the parameters in `wrong` than it was sent."""

    def __init__(self, wrong=(), lost=()):
        self.wrong, self.versions = list(wrong), []
        self.lost, self.new_workers, self.loaded_by, self.confirmed = list(lost), [], [], []
        started = SimpleNamespace(location=True)
        self.ready = self.slots = [SimpleNamespace(name=f"rollout/{index}", worker=started) for index in range(2)]

    def set_weight_sync(self, supply):
        self.supply = supply

    def load_weights(self, buckets, version, *, timeout_s, only):
        from actors.weight_buckets import WeightsLostError

        self.versions.append(version)
        self.loaded_by.append(only)
        if self.lost and self.lost.pop():
            self.new_workers = ["rollout/0", "rollout/1"]
            raise WeightsLostError("rank 0 died")
        self.new_workers = []
        return {"rollout/0": [], "rollout/1": self.wrong}

    def mark_recovered(self, names):
        self.confirmed.append(names)


@pytest.fixture
def sync():
    from actors.weight_sync import WeightSync

    def make(engines, version=0, keeps_pushed=False, direct=None):
        return WeightSync(Learners(), engines, WeightSyncConfig(), version, keeps_pushed=keeps_pushed, direct=direct)

    return make


def test_the_first_push_carries_everything_and_later_ones_what_trains(sync):
    engines = Engines()
    weights = sync(engines, version=7)
    assert [weights.push(), weights.push(), weights.push()] == [7, 8, 9] == engines.versions
    assert weights._learners.exports == [False, True, True]
    assert weights.metrics["sync/bytes"] == 8.0 * len(TRAINED) and weights.metrics["sync/version"] == 9.0


def test_every_parameter_that_was_sent_is_compared(sync):
    weights = sync(Engines())
    for sent in (FROZEN + TRAINED, TRAINED):
        weights.push()
        assert weights.metrics["sync/verified_parameters"] == len(sent)


def test_every_parameter_is_known_by_its_last_push_frozen_ones_by_the_first(sync, monkeypatch):
    weights = sync(Engines())
    weights.push()
    assert weights.digests == {name: checksum(name) for name in FROZEN + TRAINED}
    monkeypatch.setitem(globals(), "checksum", lambda name: f"{name} moved")
    weights.push()
    assert weights.digests == {name: f"checksum of {name}" for name in FROZEN} | {n: f"{n} moved" for n in TRAINED}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["text.d"], r"for text\.d after"), (TRAINED, r"for text\.a, text\.b, text\.c and 2 more after")],
)
def test_what_did_not_arrive_is_refused_with_engine_and_parameter(sync, wrong, said):
    from actors.weight_sync import WeightSyncError

    engines = Engines(wrong=wrong)
    with pytest.raises(WeightSyncError, match=rf"engine rollout/1 .*{said} push 0"):
        sync(engines).push()
    assert engines.confirmed == []


def test_an_engine_that_joins_gets_every_parameter_of_the_current_version(sync):
    engines = Engines()
    weights = sync(engines)
    weights.push()
    engines.new_workers = ["rollout/1"]
    engines.supply()
    assert engines.versions == [0, 0] and engines.loaded_by == [None, ["rollout/1"]]
    assert weights._learners.exports == [False, False] and weights.push() == 1
    assert weights._learners.exports == [False, False, True]
    assert engines.confirmed[-1] == ["rollout/0", "rollout/1"]


def test_an_engine_that_starts_while_the_learners_export_what_trains_waits_for_everything(sync):
    engines = Engines()
    weights = sync(engines)
    weights.push()
    engines.ready.pop()  # another was started in its place, and is not ready
    weights.push()
    assert weights._learners.exports == [False, True] and engines.loaded_by == [None, ["rollout/0"]]


def test_a_push_to_which_an_engine_joins_carries_everything(sync):
    engines = Engines()
    weights = sync(engines)
    weights.push()
    engines.new_workers = ["rollout/1"]
    weights.push()
    assert weights._learners.exports == [False, False]


def test_an_engine_that_starts_while_the_learners_have_moved_on_gets_what_was_pushed_last(sync):
    engines, sent = Engines(), []
    load = engines.load_weights
    engines.load_weights = lambda buckets, version, **to: (
        sent.append((buckets, version)) or load(buckets, version, **to)
    )
    weights = sync(engines, keeps_pushed=True)
    for _ in range(3):
        weights.push()
    weights._learners.has_moved, engines.new_workers = True, ["rollout/1"]
    weights.sync_new_workers()
    assert weights._learners.exports == [
        False,
        True,
        True,
    ]  # the learners were not asked: they hold other weights by now
    buckets, version = sent[-1]
    assert version == 2 and engines.loaded_by[-1] == ["rollout/1"]
    assert buckets == sent[0][0] + sent[2][0]  # frozen parameters as of the first push, the others as of the last


def test_what_went_from_device_to_device_is_not_kept_and_a_part_alone_is_no_policy(sync):
    from actors.device_transfer import TransferError

    arrives = [False, True, False]  # by push

    def send(slots, version, *, everything):
        if not arrives[version]:
            raise TransferError("an engine was lost")
        return [], {}, {}

    engines = Engines()
    weights = sync(engines, keeps_pushed=True, direct=SimpleNamespace(send=send))
    for version in range(3):  # through the object store, directly, and a part through the object store
        weights._learners.has_moved = True
        assert weights.push() == version
        if arrives[version]:
            assert not weights._learners.has_moved  # engines that start now are given what the learners hold
    weights._learners.has_moved, engines.new_workers = True, ["rollout/1"]
    weights.sync_new_workers()
    assert engines.versions == [0, 2]  # it waits


def test_where_nothing_is_kept_it_waits_for_the_next_push(sync):
    engines = Engines()
    weights = sync(engines)
    weights.push()
    weights._learners.has_moved, engines.new_workers = True, ["rollout/1"]
    weights.sync_new_workers()
    assert engines.versions == [0]
    assert weights.push() == 1 and weights._learners.exports == [False, False]


def test_weights_lost_in_transit_are_sent_once_more_and_whole(sync):
    engines = Engines(lost=[False, True, False])  # popped from the end: the first push arrives, the second does not
    weights = sync(engines)
    assert [weights.push(), weights.push()] == [0, 1]
    assert engines.versions == [0, 1, 1] and weights._learners.exports == [False, True, False]


def test_weights_lost_twice_are_not_a_version(sync):
    from actors.weight_buckets import WeightsLostError

    weights = sync(Engines(lost=[True, True]))
    with pytest.raises(WeightsLostError, match="rank 0 died"):
        weights.push()
