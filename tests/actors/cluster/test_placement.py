"""Placement: a named bundle per worker, room that is waited for, and a refusal of what can never be provided."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import replace

import pytest

from rl.config.errors import ConfigError
from rl.config.trainer import PlacementConfig
from rl.fault_injection.run_process import ProcessTree, wait_gone
from rl.tracking.metrics import ray_name
from tests.calibration import within

pytestmark = pytest.mark.ray

PLACEMENT = PlacementConfig(rollout_cpus=1, reward_cpus=0.25, learner_cpus=0.5)


@pytest.fixture
def reserve(ray_cluster):
    """Slots of a run; released at the end."""
    from actors.cluster.placement import Demand, Slots

    reserved = []

    def reserve(rollout=1, reward=0, learner=0, **placement):
        reserved.append(Slots(replace(PLACEMENT, **placement), Demand(rollout, reward, learner), "video-r1"))
        return reserved[-1]

    yield reserve
    for slots in reserved:
        slots.release()


def test_every_worker_is_named_after_the_run_and_has_its_own_bundle(reserve):
    slots = reserve(rollout=2, reward=1, learner=2)
    assert slots.options("rollout", 1)["name"] == "video-r1/rollout/1"
    assert [slots.options(kind, 0)["num_cpus"] for kind in ("rollout", "reward", "learner")] == [1, 0.25, 0.5]
    bundles = [
        slots.options(kind, index)["scheduling_strategy"].placement_group_bundle_index
        for kind, index in (("rollout", 0), ("rollout", 1), ("reward", 0), ("learner", 0), ("learner", 1))
    ]
    assert bundles == [0, 1, 2, 3, 4]


def test_ranks_of_the_cold_start_stand_with_the_learners_and_on_each_gpu_of_an_engine(reserve, monkeypatch):
    from actors.cluster import placement

    monkeypatch.setattr(placement, "_require_capacity", lambda bundles: None)  # there is no GPU here
    monkeypatch.setattr(placement, "_wait_for_room", lambda *_: None)
    slots = reserve(rollout=2, reward=1, learner=2, rollout_gpus=2.0, learner_gpus=1.0)
    placed = [slots.options("cold_start", rank) for rank in range(6)]
    bundles = [one["scheduling_strategy"].placement_group_bundle_index for one in placed]
    assert bundles == [3, 4, 0, 0, 1, 1] and placed[5]["name"] == "video-r1/cold-start/5"
    assert [(one["num_cpus"], one["num_gpus"]) for one in placed] == [(0.5, 1.0)] * 6  # two halves of an engine's CPU


HALVES = replace(PLACEMENT, rollout_gpus=0.5, learner_gpus=0.5)


def test_on_shared_gpus_every_rank_has_one_of_its_own_with_its_engines_beside_it():
    """Ray by itself would put both ranks on the second GPU, where NCCL refuses them."""
    from actors.cluster.placement import Demand, bundles_of

    shared = {"CPU": 1.5, "GPU": 1.0}
    assert bundles_of(HALVES, Demand(rollout=2, reward=1, learner=2)) == [shared, shared, {"CPU": 0.25}]
    quarters = replace(HALVES, rollout_gpus=0.25)
    three = bundles_of(quarters, Demand(rollout=3, reward=0, learner=2))
    assert three == [{"CPU": 2.5, "GPU": 1.0}, {"CPU": 1.5, "GPU": 1.0}]
    alone = bundles_of(HALVES, Demand(rollout=2, reward=0, learner=0))  # an evaluation has no learners
    assert alone == [{"CPU": 1, "GPU": 0.5}] * 2


def test_a_rank_beside_engines_with_gpus_of_their_own_still_has_a_whole_one():
    from actors.cluster.placement import Demand, bundles_of

    placement = replace(PLACEMENT, rollout_gpus=1.0, learner_gpus=0.5)
    gpus = [bundle.get("GPU", 0.0) for bundle in bundles_of(placement, Demand(rollout=1, reward=1, learner=2))]
    assert gpus == [1.0, 0.0, 1.0, 1.0]


def test_more_engines_than_a_shared_gpu_holds_are_refused_with_what_helps():
    from actors.cluster.placement import Demand, bundles_of

    with pytest.raises(ConfigError, match=r"2 engines beside it \(0\.5 each\) need 1\.5 of one GPU: lower placement"):
        bundles_of(HALVES, Demand(rollout=3, reward=0, learner=2))


def test_workers_of_one_gpu_are_in_one_bundle(reserve, monkeypatch):
    from actors.cluster import placement

    asked = []
    monkeypatch.setattr(placement, "_require_capacity", lambda bundles: None)  # there is no GPU here
    monkeypatch.setattr(placement, "_wait_for_room", lambda group, bundles, timeout_s: asked.append(bundles))
    slots = reserve(rollout=2, reward=1, learner=2, rollout_gpus=0.5, learner_gpus=0.5)
    places = {
        (kind, index): slots.options(kind, index)["scheduling_strategy"].placement_group_bundle_index
        for kind, index in (("rollout", 0), ("rollout", 1), ("learner", 0), ("learner", 1), ("reward", 0))
    }
    assert list(places.values()) == [0, 1, 0, 1, 2]
    assert [slots.options(kind, 1)["num_gpus"] for kind in ("rollout", "learner")] == [0.5, 0.5]
    assert len(asked[0]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"learner_cpus": 100.0}, r"needs 101\.25 CPU but the cluster has 8"), ({"rollout_gpus": 1.0}, "needs 1 GPU")],
)
def test_more_than_a_ray_of_its_own_has_is_refused_at_once(reserve, change, message):
    with pytest.raises(ConfigError, match=message):
        reserve(reward=1, learner=1, **change)


def test_gpus_on_a_cluster_without_any_are_refused_at_once(reserve, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match=r"needs 2 GPU but no node of the cluster has any: .*placement\.autoscaling"):
        reserve(rollout=2, rollout_gpus=1.0, timeout_s=3600)


def test_gpus_that_are_started_on_demand_are_waited_for(reserve, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"needs 1 GPU but the cluster has 0"):
        reserve(rollout_gpus=1.0, autoscaling=True, timeout_s=1)
    assert time.monotonic() - started >= 1


def test_a_full_cluster_is_waited_for_and_that_is_logged_every_minute_in_cpus(reserve, monkeypatch, caplog):
    from actors.cluster.placement import PlacementError

    monkeypatch.setattr("actors.cluster.placement.QUIET_S", 0.2)
    monkeypatch.setattr("actors.cluster.placement.REPORT_S", 0.5)
    reserve(rollout_cpus=6)
    with pytest.raises(PlacementError, match=r"within 2 s \(placement\.timeout_s\): 6 CPUs needed, 2 of 8 free"):
        reserve(rollout_cpus=6, timeout_s=2)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) >= 2
    assert said[0].startswith("waiting for room on the cluster: 6 CPUs needed, 2 of 8 free; waited 0 of 2 s")


def test_room_that_is_made_while_a_run_waits_is_taken(reserve):
    first = reserve(rollout_cpus=6)
    threading.Timer(0.5, first.release).start()
    assert reserve(rollout_cpus=6, timeout_s=60).options("rollout", 0)["num_cpus"] == 6


def test_a_run_that_gave_up_waiting_takes_no_room_later(reserve):
    from actors.cluster.placement import PlacementError

    first = reserve(rollout_cpus=6)
    with pytest.raises(PlacementError):
        reserve(rollout_cpus=6, timeout_s=0.5)
    first.release()
    assert reserve(rollout_cpus=6, timeout_s=60)


def test_a_cluster_that_is_too_small_is_given_the_time_to_grow_and_then_told_what_is_missing(reserve, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"needs 101\.25 CPU but the cluster has 8"):
        reserve(reward=1, learner=1, learner_cpus=100.0, timeout_s=1)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("mode", ["nonsense", "tokens"])
def test_an_auth_mode_that_ray_does_not_know_is_one_line(monkeypatch, mode):
    from actors.cluster.connection import require_auth_mode

    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConfigError, match=rf"^RAY_AUTH_MODE is '{mode}': it must be one of token, disabled, or unset$"):
        require_auth_mode()


@pytest.mark.parametrize("mode", [None, "", "token", "TOKEN", "disabled"])
def test_an_auth_mode_that_ray_knows_is_left_alone(monkeypatch, mode):
    from actors.cluster.connection import require_auth_mode

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    require_auth_mode()


def test_a_process_connected_already_has_no_dashboard_to_show(ray_cluster):
    from actors.cluster.connection import connected
    from actors.cluster.placement import Demand

    with connected(PLACEMENT, Demand(1, 1, 1)) as dashboard:
        assert dashboard == ""
    assert ray_cluster.is_initialized()  # it stays the cluster of the caller that connected


@pytest.mark.parametrize(
    ("gpus", "available", "size"),
    [({}, 32 << 30, 1 << 30), ({}, 1 << 30, 1 << 28), ({"rollout_gpus": 1.0}, 32 << 30, None)],
)
def test_the_object_store_is_small_for_small_policies_and_rays_own_size_beside_gpus(gpus, available, size):
    from actors.cluster.connection import object_store_bytes

    assert object_store_bytes(replace(PLACEMENT, **gpus), available) == size


def test_faults_are_counted_in_ray_where_a_gauge_would_show_the_last_one_for_ever(ray_cluster):
    from actors.cluster.metrics import RayMetricsSink

    for leg in range(2):  # learners built anew: another sink of the same process goes on counting
        sink = RayMetricsSink("faulty")
        sink.write(leg + 1, {"faults/worker_died": 2.0, "faults/worker_hung": 0.0})
        sink.close()
    (port,) = (node["MetricsExportPort"] for node in ray_cluster.nodes())
    deadline, counted = time.monotonic() + 60, []
    while not counted and time.monotonic() < deadline:
        time.sleep(0.5)  # Ray exports its metrics in its own time
        counted = _exported(port, 'run="faulty"', of="faults")
    assert {(name.split("{")[0], value) for name, value in counted} == {("ray_dynframe_faults_worker_died_total", 4.0)}


def test_metrics_reach_ray_under_names_prometheus_accepts(ray_cluster):
    from actors.cluster.metrics import RayMetricsSink

    assert ray_name("policy/clip_fraction/sampling") == "dynframe_policy_clip_fraction_sampling"
    sink = RayMetricsSink("test")
    sink.write(1, {"reward/sampling": 0.5})
    assert sink._gauges["reward/sampling"].info["description"].startswith("mean reward of the sampling segment")


def _exported(port, tag, *, of):
    """(name with tags, value) of the run's exported metrics whose names begin with `of`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith(f"ray_dynframe_{of}") and tag in line]
    return [(name, float(value)) for name, _, value in found]


ASKED_TO_STOP = """
import signal, sys, time, ray
from actors.cluster.placement import Demand
from actors.cluster.connection import connected
from rl.config.trainer import PlacementConfig
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
@ray.remote
class Square:
    def of(self, x):
        return x * x
say = lambda line: (sys.stdout.write(line), sys.stdout.flush())
with connected(PlacementConfig(dashboard=False), Demand(rollout=1, reward=1, learner=1)):
    square = Square.remote().of
    try:  # before it says so: the signal may come as soon as it has
        say(f"connected {ray.get(square.remote(2))}\\n")
        time.sleep(600)
    finally:
        say(f"stopping {ray.get(square.remote(3), timeout=60)}\\n")
"""


@pytest.fixture
def ray_user():
    """A program of one's own that starts Ray, and all its processes."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: paths of Unix sockets end at 107 bytes
    trees = []

    def start(**variables):
        ours = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
        for _ in range(3):  # Ray 2.60's exporter of metrics crashes now and then as Ray starts
            run = subprocess.Popen(
                [sys.executable, "-c", ASKED_TO_STOP],
                env=ours | {"RAY_TMPDIR": folder} | variables,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            trees.append(ProcessTree(run))
            if told := run.stdout.readline():
                break
            assert run.wait(timeout=within(60)) == -signal.SIGSEGV
        assert told == "connected 4\n"
        trees[-1].refresh()
        return run, trees[-1]

    yield start
    for tree in trees:
        tree.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="in this process"),
        # so do the next tests, with signals to the whole group
        pytest.param({"RAY_AUTH_MODE": "token"}, marks=pytest.mark.soak, id="in its own session"),
    ],
)
def test_a_program_that_starts_ray_keeps_its_own_answer_to_sigterm(ray_user, variables):
    """Ray takes SIGTERM for a crash: the process would end without a word of its own, and with another exit code."""
    run, tree = ray_user(**variables)
    run.terminate()
    assert run.wait(timeout=within(120)) == 143
    assert run.stdout.readline() == "stopping 9\n"
    assert tree.wait_gone(within(60.0)) == []


# SIGTERM of a whole run: tests/test_faults.py
@pytest.mark.parametrize("signum", [pytest.param(signal.SIGTERM, marks=pytest.mark.soak), signal.SIGINT])
def test_a_signal_to_the_whole_process_group_leaves_ray_working_until_the_program_has_stopped(ray_user, signum):
    run, tree = ray_user(RAY_AUTH_MODE="token")
    os.killpg(run.pid, signum)
    run.wait(timeout=within(120))
    assert run.stdout.readline() == "stopping 9\n"
    assert tree.wait_gone(within(60.0)) == []


def test_ray_ends_with_a_program_that_is_killed(ray_user):
    """But for Ray's agents, which try for a minute more to tell the cluster that it is gone."""
    run, tree = ray_user(RAY_AUTH_MODE="token")
    agents = [process for process in tree.refresh() if "agent" in " ".join(process.cmdline()).lower()]
    others = [process for process in tree.alive() if process not in agents]
    assert len([process for process in others if "ray::" in process.name()]) == 1  # what squares; none is idle
    assert len(others) >= 4  # the program, its session, raylet and GCS
    run.kill()
    run.wait(timeout=60)
    assert wait_gone(others, within(60.0)) == []


def test_a_ray_that_does_not_start_says_why_in_one_line():
    from actors.cluster.session import RaySession, RaySessionError

    with pytest.raises(RaySessionError, match="no_such_option"):
        RaySession({"address": "local", "no_such_option": 1})


def test_a_ray_that_is_too_slow_to_start_is_started_again(monkeypatch):
    from actors.cluster.session import RaySession, RaySessionError

    answers = ["The current node timed out during startup", "127.0.0.1:4000"]

    def read_address(session):
        if "timed out" in (answer := answers.pop(0)):
            raise RaySessionError(answer)
        return answer

    monkeypatch.setattr(RaySession, "_read_address", read_address)
    session = RaySession({"address": "local", "no_such_option": 1})
    assert session.address == "127.0.0.1:4000" and not answers
    session.stop()
