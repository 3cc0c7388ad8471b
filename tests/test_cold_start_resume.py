"""The supervised stage, killed in the middle and started again, makes the same policy to the last bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.fault_injection.run_process import kill_process_tree

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.soak]

ROOT = Path(__file__).parents[1]
STEPS, SAVED = 40, 16
SMALL = (
    *("data.quickstart.train_clips=5", "data.quickstart.held_out_clips=4", "placement.dashboard=false"),
    *(f"cold_start.steps={STEPS}", f"cold_start.save_every={SAVED}", "cold_start.batch_size=8"),
)


def started(home, *overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "rl", "cold-start", "configs/quickstart.yaml", *SMALL, f"cache_dir={home}", *overrides],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(home, *overrides):
    """What it said, and the weights it has made."""
    process = started(home, *overrides)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]
    (made,) = [folder for folder in home.glob("cold-start-*") if not folder.name.endswith(".progress")]
    assert not list(home.glob("*.progress"))
    return said, {file.name: file.read_bytes() for file in made.glob("*.safetensors")}


def test_a_cold_start_that_is_killed_and_started_again_makes_the_same_policy_bit_for_bit(tmp_path):
    _, straight = finished(tmp_path / "straight")
    home = tmp_path / "killed"
    ahead = "trainer.max_policy_lag=1"  # of the run that follows: nothing to a cold start
    process, deadline = started(home, ahead), time.monotonic() + 900
    while not list(home.glob(f"*.progress/checkpoints/step_{SAVED:08d}/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert kill_process_tree(process) >= 4  # driver, Ray, two ranks
    process.communicate(timeout=60)
    said, resumed = finished(home, ahead)
    assert "continuing the cold start at step" in said
    assert resumed == straight
