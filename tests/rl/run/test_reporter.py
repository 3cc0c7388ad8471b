"""The gates: a run stops before it learns from what cannot be trusted."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from rewards.golden import golden_group
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rl.config.file import load_config
from rl.run.reporter import GateError, Reporter, conclude
from rl.tracking.backlog import Backlog
from rl.tracking.fingerprint import STAGES
from rl.tracking.sinks import JsonlSink, MetricLog
from rl.trajectory import LearnerUpdate, Segment, StopReason, Trajectory, TrajectoryGroup
from tests.envs.setting import make_processor
from tests.remote_groups import load, remote_scored
from tests.test_architecture import ROOT


@pytest.fixture
def step(tmp_path):
    config = load_config([ROOT / "configs" / "quickstart.yaml"])
    backlog = Backlog(max_failed=1)
    numbers = MetricLog([JsonlSink(tmp_path, keep_through_step=-1, backlog=backlog)])
    progress = Progress(console=Console(quiet=True))
    reporter = Reporter(config, tmp_path, numbers, backlog, progress, 0, make_processor(tmp_path), load)

    def run(scored, logprobs_PG=((None,) * 4,), **metrics):
        timed = {"seconds/step": 1.0, "seconds/rollout": 0.5, "policy/version": 9.0}
        measured = {name.replace("__", "/"): value for name, value in metrics.items()}
        learned = LearnerUpdate(measured, logprobs_PG, 1, optimizer="00")
        reporter.step(0, remote_scored(scored), learned, timed, {"w": "00"})
        return json.loads((tmp_path / "metrics.jsonl").read_text())

    return run


def scored():
    return [score_group(golden_group(), [WeightedReward("window", temporal_iou, Segment.SAMPLING)])]


def test_a_step_is_logged_with_everything_that_was_measured(step):
    line = step(scored(), parity__mean__reasoning=1e-7)
    assert line["step"] == 1 and line["reward/term/window"] == 0.25 and line["rollout/trajectories"] == 4
    assert "advantage/sampling" in line and "memory/driver" in line
    assert line["policy/staleness_mean"] == line["policy/staleness_max"] == 8 - golden_version()


def golden_version():
    """Of the weights that sampled the golden group; those that learned from it, before the push, are of version 8."""
    return golden_group().trajectories_G[0].turns[0].completion.policy_version


def test_a_step_says_what_it_was_bit_by_bit(step):
    line = step(scored(), parity__mean__reasoning=1e-7)
    prints = {name: value for name, value in line.items() if name.startswith("state/")}
    assert list(prints) == [*(f"state/{stage}" for stage in STAGES), "state/hash"]
    assert all(value.startswith("sha256:") for value in prints.values())


def test_records_of_a_step_show_what_was_learned_of_each_turn(step, tmp_path):
    looked_well = np.array([-0.31, -0.52, -0.1], np.float32)  # one token of the call, two of the answer
    step(scored(), logprobs_PG=((looked_well, None, None, None),))
    first, second, *_ = map(json.loads, (tmp_path / "trajectories" / "step_000001.jsonl").read_text().splitlines())
    assert [turn["learner_logprobs"] for turn in first["turns"]] == [[-0.31], [-0.52, -0.1]]
    # R_samp 1 among 0, 0, 0: (1 - 1/4) / sqrt(3)/4 = sqrt(3); R_reason is 0 for all
    assert [turn["advantage"] for turn in first["turns"]] == [pytest.approx(3**0.5, abs=1e-3), 0.0]
    assert second["turns"][0]["learner_logprobs"] is None


@pytest.mark.parametrize("drift", [2.0, math.nan])
def test_engine_and_learner_that_disagree_stop_the_run_and_nan_is_no_agreement(step, drift):
    with pytest.raises(GateError, match="step 1: engine and learner"):
        step(scored(), parity__mean__sampling=drift)


def test_videos_that_cannot_be_read_stop_the_run_when_they_are_many(step):
    lost = Trajectory((), StopReason.VIDEO_ERROR, note="clip.mp4: cannot be opened")
    group = TrajectoryGroup(golden_group().task, (lost,) * 4, None)
    with pytest.raises(GateError, match="100% of the trajectories could not be read"):
        step([score_group(group, [WeightedReward("window", temporal_iou, Segment.SAMPLING)])])


def concluded(run_dir, *evaluations):
    numbers = {"seconds/step": 1.0, "policy/version": 1.0, "reward/failed": 0.0, "rollout/video_errors": 0.0}
    lines = [{"step": 0, **evaluation} for evaluation in evaluations[:1]] + [{"step": 1, **numbers}]
    lines += [{"step": 1, **evaluation} for evaluation in evaluations[1:]]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    console = Console(file=io.StringIO(), width=100)
    conclude(run_dir, console)
    return console.file.getvalue()


def test_a_run_without_evaluations_ends_without_a_table_of_nothing(tmp_path):
    said = concluded(tmp_path)
    assert "1 steps in 1 s; no held-out tasks were evaluated (trainer.eval_tasks=0)" in said and "nan" not in said


def test_what_was_evaluated_before_and_after_stands_side_by_side(tmp_path):
    before, after = ({"held_out/tasks": 4.0, "held_out/accuracy": value} for value in (0.25, 0.75))
    said = concluded(tmp_path, before, after)
    (row,) = (line for line in said.splitlines() if "accuracy" in line)
    assert row.split() == ["held-out", "answer", "accuracy", "0.250", "0.750"]
    assert "nan" not in said and "frames retrieved" not in said
