"""Placement: a slot per worker, and a clear refusal of what the cluster can never give."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace

import pytest

from rl.config.trainer import PlacementConfig
from rl.fault_injection.run_process import ProcessTree

pytestmark = pytest.mark.ray

PLACEMENT = PlacementConfig(rollout_cpus=1, reward_cpus=0.25, learner_cpus=0.5)


def test_every_worker_has_a_name_and_its_own_share(ray_cluster):
    from actors.placement import Demand, Slots

    slots = Slots(PLACEMENT, Demand(rollout=2, reward=1, learner=2))
    assert slots.options("rollout", 1)["name"] == "rollout/1"
    assert [slots.options(kind, 0)["num_cpus"] for kind in ("rollout", "reward", "learner")] == [1, 0.25, 0.5]
    bundles = [
        slots.options(kind, index)["scheduling_strategy"].placement_group_bundle_index
        for kind, index in (("rollout", 0), ("rollout", 1), ("reward", 0), ("learner", 0), ("learner", 1))
    ]
    assert bundles == [0, 1, 2, 3, 4]
    slots.release()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"learner_cpus": 100.0}, r"needs 101\.25 CPU but the cluster has 8"), ({"rollout_gpus": 1.0}, "needs 1 GPU")],
)
def test_what_no_waiting_can_provide_is_refused_at_once(ray_cluster, change, message):
    from actors.placement import Demand, PlacementError, Slots

    with pytest.raises(PlacementError, match=message):
        Slots(replace(PLACEMENT, **change), Demand(rollout=1, reward=1, learner=1))


def test_a_busy_cluster_is_refused_after_a_while_with_what_is_free(ray_cluster):
    from actors.placement import Demand, PlacementError, Slots

    first = Slots(replace(PLACEMENT, rollout_cpus=6), Demand(rollout=1, reward=0, learner=0))
    with pytest.raises(PlacementError, match=r"within 1 s .*free now"):
        Slots(replace(PLACEMENT, rollout_cpus=6, timeout_s=1), Demand(rollout=1, reward=0, learner=0))
    first.release()


def test_a_cluster_that_may_grow_is_given_the_time_to_and_then_told_what_is_missing(ray_cluster, monkeypatch):
    from actors.placement import Demand, PlacementError, Slots

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    started = time.monotonic()
    with pytest.raises(PlacementError, match=r"needs 101\.25 CPU but the cluster has 8"):
        Slots(replace(PLACEMENT, learner_cpus=100.0, timeout_s=1), Demand(rollout=1, reward=1, learner=1))
    assert time.monotonic() - started >= 1


def test_a_process_connected_already_has_no_dashboard_to_show(ray_cluster):
    from actors.placement import Demand, connect

    assert connect(PLACEMENT, Demand(1, 1, 1)) == ""


@pytest.mark.parametrize(
    ("gpus", "available", "size"),
    [({}, 32 << 30, 1 << 30), ({}, 1 << 30, 1 << 28), ({"rollout_gpus": 1.0}, 32 << 30, None)],
)
def test_the_object_store_is_small_for_small_policies_and_rays_own_size_beside_gpus(gpus, available, size):
    from actors.placement import object_store_bytes

    assert object_store_bytes(replace(PLACEMENT, **gpus), available) == size


def test_faults_are_counted_in_ray_where_a_gauge_would_show_the_last_one_for_ever(ray_cluster):
    from actors.ray_metrics import RayMetricsSink

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
    from actors.ray_metrics import RayMetricsSink, gauge_name

    assert gauge_name("policy/clip_fraction/sampling") == "dynframe_policy_clip_fraction_sampling"
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
import signal, sys, time
from actors.placement import Demand, connect
from rl.config.trainer import PlacementConfig
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
connect(PlacementConfig(dashboard=False), Demand(rollout=1, reward=1, learner=1))
sys.stdout.write("connected\\n")
sys.stdout.flush()
time.sleep(600)
"""


def test_whoever_starts_ray_is_asked_to_stop_as_before():
    """Ray takes SIGTERM for a crash: the process would end without a word of its own, and with another exit code."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: paths of Unix sockets end at 107 bytes
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
    command = [sys.executable, "-c", ASKED_TO_STOP]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    tree = ProcessTree(run)
    try:
        assert run.stdout.readline() == "connected\n"
        tree.refresh()
        run.terminate()
        assert run.wait(timeout=120) == 143
        assert tree.wait_gone(60.0) == []
    finally:
        tree.kill()
        shutil.rmtree(folder, ignore_errors=True)
