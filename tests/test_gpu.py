"""The loop on one CUDA device, engine and learner sharing it: skipped, with its reason, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

REPOSITORY = Path(__file__).parents[1]
ONE_GPU = (
    "policy.dtype=bfloat16",
    "placement.rollout_gpus=0.5",
    "placement.learner_gpus=0.5",
    "rollout.num_workers=1",
    "learner.num_ranks=1",
    "rollout.engine.gpu_memory_utilization=0.3",
    "cold_start.steps=90",
    "trainer.steps=3",
    "trainer.eval_tasks=8",
)


def test_engine_and_learner_on_one_gpu_train_and_agree(tmp_path):
    folders = (f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache")
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "train", "configs/quickstart.yaml", *ONE_GPU, *folders],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=590,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    metrics = (tmp_path / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, metrics) if "seconds/step" in line]
    assert len(steps) == 3
    assert all(step["parity/mean/reasoning"] < 0.05 for step in steps)  # bf16: 7e-3 is normal
