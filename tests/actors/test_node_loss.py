"""A cluster of several nodes, one of which is lost: what was played there goes on elsewhere. Real raylets."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]
HEALTH = {  # Ray's own defaults take 14 s to give a node up
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}
SCRIPT = """
import json, sys, time
from functools import partial
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from actors.cluster.placement import Demand, Slots
from actors.rollout_group import RolloutWorkerGroup
from actors.rollout_pool import RolloutPool
from rl.config.trainer import PlacementConfig
from tests.actors.test_rollout import ScriptedRunner, tasks

folder, health = Path(sys.argv[1]), json.loads(sys.argv[2])
options = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**options, "_system_config": health})
other = cluster.add_node(**options)
ray.init(cluster.address, log_to_driver=False)
slots = Slots(PlacementConfig(colocate=False, rollout_cpus=1.0), Demand(rollout=2, reward=0, learner=0), "test")
workers = RolloutWorkerGroup(partial(ScriptedRunner, folder), 2, lambda index: slots.options("rollout", index))
pool = RolloutPool(workers, timeout_s=120)
workers.wait_ready(60)
homes = [slot.worker.location.node_id for slot in workers.slots]

playing = pool.roll_out(tasks("waits", "waits too", *"abcdefgh", "last"), step=0, greedily=False, in_flight=2)
done = dict(next(playing))  # both "waits" are in the hands of a worker each, and stay there until "last"
struck = time.time()
cluster.remove_node(other, allow_graceful=False)
for finished in playing:
    done |= dict(finished)
faults = workers.take_faults()
while not faults:
    workers.poll()
    faults = workers.take_faults()
print(json.dumps({
    "nodes": len(set(homes)),
    "tasks": sorted(group.task.task_id for group in done.values()),
    "faults": [fault.kind for fault in faults],
    "detected_s": faults[0].detected_s - struck,
    "recovery_s": faults[0].recovery_s,
    "alive": sum(slot.worker.location.node_id != other.node_id for slot in workers.slots),
}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture
def ray_folder():
    """Short, for paths of Unix sockets end at 107 bytes; and of its own: Ray notes there which cluster is running."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def test_a_node_is_lost_and_no_task_with_it(tmp_path, ray_folder, record_property):
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(HEALTH)],
        cwd=REPOSITORY,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        | {"RAY_TMPDIR": ray_folder},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-3000:]
    told = json.loads(next(line for line in answer.stdout.splitlines() if line.startswith("{")))  # Ray prints as well
    record_property("node lost", told)
    assert told["nodes"] == 2
    assert told["tasks"] == sorted(["waits", "waits too", *"abcdefgh", "last"])
    assert told["faults"] == ["worker_died"] and told["detected_s"] < 10
    assert told["alive"] == 2  # both workers are on the node that is left
