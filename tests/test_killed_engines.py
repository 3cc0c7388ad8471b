"""An engine is killed at each thing it does, a real vLLM each time: another one finishes its work, to the bit.

The worker kills itself, for only it knows what it is doing; driver, worker group and pool are those of a run.
"""

import contextlib
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from rl.config.file import load_config
from rl.run.workers import start_rollout_runner
from tests.calibration import within
from tests.lost_objects import whole

# one that is killed or stopped in a whole run: tests/test_faults.py; in a push: tests/actors/test_device_transfer.py
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.soak]

REPOSITORY = Path(__file__).parents[1]
SMALL = (
    "data.quickstart.train_clips=4",
    "data.quickstart.held_out_clips=4",
    "cold_start.enabled=false",
    "rollout.num_workers=2",
    "rollout.group_size=4",
    "rollout.max_new_tokens=24",
    "rollout.deterministic=true",
)
PLAYING = ("frames", "prefill", "decode")  # an untrained policy talks until it may not, so that all of them happen
DECODED = 5  # steps of the engine since requests came in


def doomed_runner(config, policy_dir, folder):
    """A runner that dies where a file in `folder` says, once, and leaves the time there."""
    runner = start_rollout_runner(config, policy_dir)
    engine, reader = runner.engine, runner._episode_context.reader
    vllm = engine._driver._engine
    add_request, step, frames, load_weights = vllm.add_request, vllm.step, reader.frames, engine.load_weights
    since = [0]

    def die_in(moment):
        with contextlib.suppress(FileNotFoundError):
            (folder / moment).rename(folder / f"{moment}-struck")
            (folder / f"{moment}-struck").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    def adding(*arguments, **settings):
        since[0] = 0
        return add_request(*arguments, **settings)

    def stepping():
        since[0] += 1
        if since[0] in (1, DECODED):
            die_in("prefill" if since[0] == 1 else "decode")
        return step()

    def reading(*arguments):
        asked = threading.Thread(target=frames, args=arguments, daemon=True)
        if (folder / "frames").exists():
            asked.start()
            die_in("frames")
        return frames(*arguments)

    def loading(named, version):
        def halfway():
            for number, one in enumerate(named):
                if number == 3:
                    die_in("push")
                yield one

        return load_weights(halfway(), version)

    vllm.add_request, vllm.step, reader.frames, engine.load_weights = adding, stepping, reading, loading
    return runner


@pytest.fixture(scope="module")
def world(tmp_path_factory, refusal):
    """Configuration, policy and tasks."""
    if refusal:  # what needs no equal bits is tested in tests/test_faults.py
        pytest.skip(refusal)
    from rl.run.prepare.policy import prepare_policy
    from rl.run.prepare.tasks import prepare_tasks

    home = tmp_path_factory.mktemp("killed")
    config = load_config([REPOSITORY / "configs" / "quickstart.yaml"], [*SMALL, f"cache_dir={home}/cache"])
    tasks = prepare_tasks(config, "train", Console(quiet=True)).tasks
    return config, prepare_policy(config), tasks[:2]


@pytest.fixture(scope="module")
def pool(ray_cluster, world, tmp_path_factory):
    from actors.rollout_group import RolloutWorkerGroup
    from actors.rollout_pool import RolloutPool
    from rl.policy.vllm.plugin import engine_environment

    config, policy_dir, _ = world
    folder = tmp_path_factory.mktemp("moments")
    environment = {"runtime_env": {"env_vars": engine_environment("cpu")}}
    workers = RolloutWorkerGroup(
        partial(doomed_runner, config, policy_dir, folder),
        config.rollout.num_workers,
        lambda index: {"num_cpus": 0.1, "name": f"killed/{index}"} | environment,
    )
    pool = RolloutPool(workers, timeout_s=within(300))
    pool.folder = folder
    workers.wait_ready(within(300))
    yield pool
    for slot in workers.slots:
        ray_cluster.kill(slot.worker.actor)


def said(groups):
    return [
        [(turn.completion.token_ids, turn.completion.logprobs) for turn in trajectory.turns]
        for group in groups
        for trajectory in group.trajectories_G
    ]


@pytest.fixture(scope="module")
def left_alone(pool, world):
    return said(whole(pool.generate(world[2], step=0)))


def strike(pool, moment):
    (pool.folder / moment).touch()


def mended(pool, moment, record_property):
    """The fault of the worker that died at a moment, once another has taken over."""
    struck_s = float((pool.folder / f"{moment}-struck").read_text())
    deadline = time.monotonic() + within(240)
    while not (faults := pool.workers.take_faults()):
        pool.workers.poll()
        pool.workers.sync_new_workers()
        assert time.monotonic() < deadline
    (fault,) = faults
    record_property("detection_s", fault.detected_s - struck_s)
    record_property("recovery_s", fault.recovery_s)
    assert 0 <= fault.detected_s - struck_s < within(10)
    return fault


@pytest.mark.parametrize("moment", PLAYING)
def test_an_engine_killed_while_it_generates_changes_no_trajectory(pool, world, left_alone, moment, record_property):
    strike(pool, moment)
    assert said(whole(pool.generate(world[2], step=0))) == left_alone
    assert mended(pool, moment, record_property).kind == "worker_died"


def test_an_idle_engine_that_is_killed_is_replaced(pool, world, left_alone, record_property):
    (pool.folder / "idle-struck").write_text(str(time.time()))
    os.kill(pool.workers.slots[0].worker.location.pid, signal.SIGKILL)
    assert mended(pool, "idle", record_property).kind == "worker_died"
    assert said(whole(pool.generate(world[2], step=0))) == left_alone


def test_an_engine_killed_halfway_through_a_push_is_replaced_by_one_with_all_the_weights(
    pool, world, left_alone, record_property
):
    from actors.weight_packing import pack

    _, policy_dir, tasks = world
    weights = {name: tensor * 1.5 for name, tensor in load_file(policy_dir / "model.safetensors").items()}
    buckets = pack(weights.items(), 2**20)
    pool.workers.set_weight_sync(
        lambda: pool.workers.mark_recovered(
            list(pool.workers.load_weights(buckets, 1, timeout_s=within(120), only=pool.workers.new_workers))
        )
    )
    strike(pool, "push")
    pool.workers.load_weights(buckets, 1, timeout_s=within(120))
    assert len(pool.workers.ready) == 1  # none samples with a part of them
    groups = whole(pool.generate(tasks, step=0))
    assert said(groups) != left_alone
    assert {turn.completion.policy_version for g in groups for t in g.trajectories_G for turn in t.turns} == {1}

    assert mended(pool, "push", record_property).kind == "push_interrupted"
    differing = pool.workers.load_weights([], 1, timeout_s=within(120))
    assert differing == {slot.name: [] for slot in pool.workers.slots}
