"""A small real run whose workers are killed: it loses nothing, repeats nothing, and finishes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.fault_injection.machines import why_not
from rl.fault_injection.schedule import FAULT_TYPES
from tests.calibration import within

pytestmark = pytest.mark.soak  # minutes of random faults; each kind by itself: tests/test_faults.py

REPOSITORY = Path(__file__).parents[1]
SMALL = (
    "configs/quickstart.yaml",
    "data.quickstart.train_clips=6",  # three steps are an epoch
    "data.quickstart.held_out_clips=4",
    "cold_start.enabled=false",
    "rollout.tasks_per_step=2",
    "rollout.group_size=4",
)
KILLED = ("reward_killed", "rollout_killed")  # learners: tests/test_faults.py


OF_A_CLUSTER = tuple(name for name, fault_type in FAULT_TYPES.items() if fault_type.needs_nodes)


def chaos(tmp_path, *arguments, timeout_s):
    """What an experiment told in the end; it must have passed."""
    folders = (f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache")
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "chaos", *SMALL, *folders, *arguments, "--json"],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert answer.returncode == 0, answer.stdout[-5000:] + answer.stderr[-3000:]
    told = json.loads(answer.stdout.splitlines()[-1])
    assert told["passed"] and told["violations"] == {}
    return told


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_that_loses_workers_loses_no_task_and_repeats_none(tmp_path, lag):
    options = ("--minutes", "0.5", "--seed", "0", "--every", "6", "--only", ",".join(KILLED))
    told = chaos(tmp_path, f"trainer.max_policy_lag={lag}", *options, timeout_s=580)
    assert told["launches"] == 2
    assert sorted(told["fault_types"]) == list(KILLED)
    for row in told["fault_types"].values():
        assert row["recovered"] == row["injected"] >= 1


@pytest.mark.skipif(bool(why_not()), reason=f"no machines here: {why_not()}")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kinds", [OF_A_CLUSTER, ("node_killed", "disk_full", "run_killed")], ids=["cluster", "run"])
def test_a_run_on_a_cluster_survives_what_happens_to_its_nodes_disk_and_head(tmp_path, kinds):
    """Ray ends a driver a minute after its head service is gone, and a cluster takes minutes to be there again."""
    options = ("--nodes", "2", "--minutes", "10", "--seed", "0", "--every", "30", "--only", ",".join(kinds))
    told = chaos(tmp_path, *options, timeout_s=min(within(1500), 7000))
    assert set(told["fault_types"]) == set(kinds)
    assert all(row["injected"] >= 1 for row in told["fault_types"].values())
