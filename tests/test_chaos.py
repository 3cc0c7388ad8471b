"""A small real run whose workers are killed: it loses nothing, repeats nothing, and finishes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_that_loses_workers_loses_no_task_and_repeats_none(tmp_path, lag):
    folders = (f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache")
    options = ("--minutes", "0.5", "--seed", "0", "--every", "6", "--only", ",".join(KILLED), "--json")
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "chaos", *SMALL, f"trainer.max_policy_lag={lag}", *folders, *options],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert answer.returncode == 0, answer.stdout[-5000:] + answer.stderr[-3000:]
    told = json.loads(answer.stdout.splitlines()[-1])
    assert told["passed"] and told["violations"] == {} and told["launches"] == 2
    assert sorted(told["fault_types"]) == list(KILLED)
    for row in told["fault_types"].values():
        assert row["recovered"] == row["injected"] >= 1
