"""An evaluation, small and real: rendered clips, vLLM and Ray, a benchmark of the user's own; killed, and continued."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

REPOSITORY = Path(__file__).parents[1]
SMALL = (
    *("data.quickstart.train_clips=1", "data.quickstart.held_out_clips=6", "cold_start.enabled=false"),
    "policy.tiny.family=qwen3_vl",
)
BENCHMARK = '''
"""Questions about the clips of the synthetic world. Its metric kills the evaluation at the third one, if told to."""
import json, os, signal
from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples
from rl.trajectory import AnswerKind, VideoTask

def read(path, video_root):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return LoadedExamples(tuple(
        Example(VideoTask(f"q{i}", str(video_root / row["video"]), row["prompt"], row["answer"], AnswerKind.LETTER))
        for i, row in enumerate(rows)
    ))

scored = []

def score(example, prediction):
    scored.append(example.task.task_id)
    if len(scored) == 3 and os.environ.get("KILLED"):
        os.kill(os.getpid(), signal.SIGKILL)
    right = prediction is not None and prediction.answer == example.task.answer
    return {"accuracy": float(right), "unparsed": float(prediction.answer is None)}

CLIPS = Benchmark("clips", "by hand", read, score, "accuracy")
'''


@pytest.fixture
def evaluate(tmp_path):
    """`evaluate(KILLED="1")`: the command in a process of its own, on clips rendered here."""
    from rl.config.file import load_config
    from rl.run.prepare.tasks import prepare_world

    (tmp_path / "clips_benchmark.py").write_text(BENCHMARK)
    where = (f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", "name=tiny")
    world = prepare_world(load_config([REPOSITORY / "configs/quickstart.yaml"], [*SMALL, *where]), Console(quiet=True))
    asked = (
        *("evaluation.benchmark=clips_benchmark:CLIPS", "evaluation.in_flight=1"),
        *(f"evaluation.path={world.held_out_jsonl}", f"evaluation.video_root={world.folder}"),
        *("rollout.num_workers=1", "placement.dashboard=false"),
    )

    def evaluate(**environment):
        return subprocess.run(
            [sys.executable, "-m", "rl", "eval", "configs/quickstart.yaml", *SMALL, *where, *asked],
            cwd=REPOSITORY,
            env=os.environ | {"COLUMNS": "160", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return evaluate


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, evaluate):
    folder = tmp_path / "runs" / "tiny" / "eval" / "clips"
    killed = evaluate(KILLED="1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    before = (folder / "predictions.jsonl").read_text()
    assert len(before.splitlines()) == 2 and not (folder / "metrics.json").exists()

    again = evaluate()

    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "2 of 6 examples are done already" in again.stdout and "clips: 6 examples" in again.stdout
    after = (folder / "predictions.jsonl").read_text()
    assert after.startswith(before)
    lines = [json.loads(line) for line in after.splitlines()]
    assert sorted(line["task_id"] for line in lines) == [f"q{i}" for i in range(6)]
    assert [line["session"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert all(line["sampled_tokens"] > 0 and line["missing"] is None for line in lines)
    report = json.loads((folder / "metrics.json").read_text())
    assert report["counts"]["examples"] == report["metrics"]["accuracy"]["n"] == 6
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(
        sum(line["metrics"]["accuracy"] for line in lines) / 6
    )
