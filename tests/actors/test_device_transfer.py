"""Pushes from device to device with real engines: everything, a part, and members that die halfway.

The learner has weights and no DeepSpeed; links, engines, worker group and WeightSync are those of a run.
"""

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.config.file import load_config
from rl.run.workers import start_rollout_runner
from rl.weight_transfer.checksum import checksum, in_words
from rl.weight_transfer.description import WeightTensor, dtype_name

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

REPOSITORY = Path(__file__).parents[2]
SETTINGS = ("rollout.num_workers=2", "weight_sync.bucket_bytes=262144", "weight_sync.timeout_s=60")
HALFWAY = 4  # buckets, or parameters


class WeightsHolder:
    """A learner: every push carries other values. Of its parameters, those of the vision tower are frozen."""

    device = torch.device("cpu")

    def __init__(self, file, folder):
        self._weights, self._folder, self._pushes = load_file(file), folder, 0

    def described_weights(self, *, trainable_only):
        return [WeightTensor(name, dtype_name(w.dtype), tuple(w.shape)) for name, w in self._chosen(trainable_only)]

    def named_weights(self, *, trainable_only, wanted=None):
        self._pushes += 1
        for number, (name, weight) in enumerate(self._chosen(trainable_only)):
            if number == HALFWAY:
                die_if_told(self._folder / "learner")
            if wanted is None or name in wanted:
                yield name, weight + self._pushes

    def _chosen(self, trainable_only):
        return [(name, w) for name, w in self._weights.items() if not (trainable_only and "visual" in name)]


def die_if_told(file):
    with contextlib.suppress(FileNotFoundError):
        file.rename(file.with_suffix(".done"))
        os.kill(os.getpid(), signal.SIGKILL)


def hold_weights(file, folder, **_):
    return WeightsHolder(file, folder)


def doomed_runner(config, policy_dir, folder):
    """A runner that dies halfway through a transfer where a file in `folder` says so, once."""
    runner = start_rollout_runner(config, policy_dir)
    from rl.policy.vllm.link_engine import LinkTransferEngine

    load, loaded = LinkTransferEngine._load, [0]

    def loading(self, named):
        loaded[0] += 1
        if loaded[0] % HALFWAY == 0:
            die_if_told(folder / "engine")
        load(self, named)

    LinkTransferEngine._load = loading
    return runner


@pytest.fixture(scope="module")
def world(ray_cluster, tmp_path_factory):
    """Two engines, and a maker of learners."""
    from actors.learner_group import LearnerGroup
    from actors.rollout_group import RolloutWorkerGroup
    from rl.policy.vllm.plugin import engine_environment
    from rl.run.prepare.policy import prepare_policy

    home, folder = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("told")
    config = load_config([REPOSITORY / "configs" / "quickstart.yaml"], [*SETTINGS, f"cache_dir={home}"])
    policy_dir = prepare_policy(config)
    environment = {"runtime_env": {"env_vars": engine_environment("cpu")}}
    workers = RolloutWorkerGroup(
        partial(doomed_runner, config, policy_dir, folder),
        config.rollout.num_workers,
        lambda index: {"num_cpus": 0.1, "name": f"device transfer/{index}"} | environment,
    )
    groups = []

    def learners(ranks=1):
        groups.append(
            LearnerGroup(
                partial(hold_weights, policy_dir / "model.safetensors", folder),
                ranks,
                lambda rank: {"num_cpus": 0.1, "name": f"holder/{len(groups)}/{rank}"},
                start_timeout_s=120,
                timeout_s=60,
                poll=workers.poll,
            )
        )
        return groups[-1]

    workers.wait_ready(300)
    yield config, workers, learners, load_file(policy_dir / "model.safetensors"), folder
    for group in groups:
        group.stop()
    for slot in workers.slots:
        ray_cluster.kill(slot.worker.actor)


def sync_of(world, transport, version=0, ranks=1):
    from actors.device_transfer import DeviceTransfer
    from actors.weight_sync import WeightSync

    config, workers, learners, *_ = world
    group = learners(ranks)
    direct = DeviceTransfer(group, workers, config.weight_sync, transport, shards=1)
    return WeightSync(group, workers, config.weight_sync, version, direct=direct)


def expected(weights, pushes):
    return {name: in_words(checksum(weight + pushes).tolist()) for name, weight in weights.items()}


def wait_for_newcomers(workers):
    deadline = time.monotonic() + 240
    while not workers.new_workers:
        assert time.monotonic() < deadline
        workers.poll()
        time.sleep(0.1)


@pytest.mark.parametrize(("transport", "ranks"), [("gloo", 1), ("ipc", 2)])  # of two ranks, each serves one engine
def test_everything_goes_first_then_what_trains_and_all_of_it_is_compared(world, transport, ranks):
    _, workers, _, weights, _ = world
    sync = sync_of(world, transport, version=3, ranks=ranks)
    assert [sync.push(), sync.metrics["sync/direct"]] == [3, 1.0]
    assert sync.digests == expected(weights, 1)
    assert sync.metrics["sync/bytes"] == sum(weight.nbytes for weight in weights.values())

    assert [sync.push(), sync.metrics["sync/direct"]] == [4, 1.0]
    moved = expected(weights, 2)
    assert sync.digests == {name: moved[name] if "visual" not in name else sums for name, sums in sync.digests.items()}
    assert sync.metrics["sync/verified_parameters"] == sum("visual" not in name for name in weights)
    assert [slot.worker.version for slot in workers.slots] == [4, 4]


@pytest.mark.parametrize("transport", ["gloo", pytest.param("ipc", marks=pytest.mark.soak)])
def test_where_an_engine_dies_halfway_the_others_get_the_push_from_the_object_store(world, transport):
    _, workers, _, weights, told = world
    sync = sync_of(world, transport, version=10)
    sync.push()
    workers.take_faults()
    (told / "engine").touch()
    began = time.monotonic()
    assert sync.push() == 11 and sync.metrics["sync/direct"] == 0.0
    assert time.monotonic() - began < 30  # its death was seen: nobody waited for the timeout
    assert [slot.worker.version for slot in workers.ready] == [11]
    assert set(sync.digests) == set(weights)  # everything: the survivor had had a part

    wait_for_newcomers(workers)
    assert sync.push() == 12 and sync.metrics["sync/direct"] == 1.0  # with the one that took its place
    assert len(workers.take_faults()) == 1
    assert [slot.worker.version for slot in workers.slots] == [12, 12]


def test_where_the_learner_dies_halfway_no_engine_samples_before_other_learners_push(world):
    from actors.pending_write import LearnerError

    _, workers, _, _, told = world
    sync = sync_of(world, "gloo", version=20)
    sync.push()
    (told / "learner").touch()
    with pytest.raises(LearnerError):
        sync.push()
    assert workers.ready == []
    assert sync_of(world, "gloo", version=20).push() == 20
    assert [slot.worker.version for slot in workers.ready] == [20, 20]
