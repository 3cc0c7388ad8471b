"""The gates: a run stops before it learns from what cannot be trusted."""

import json
import math

import pytest
from rich.console import Console
from rich.progress import Progress

from rewards.golden import golden_group
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rl.config import load_config
from rl.policy.processor import Geometry
from rl.reporter import GateError, Reporter
from rl.sinks import JsonlSink, MetricLog
from rl.trajectory import Segment, StopReason, Trajectory, TrajectoryGroup
from tests.test_architecture import ROOT


@pytest.fixture
def step(tmp_path):
    config = load_config([ROOT / "configs" / "quickstart.yaml"])
    numbers = MetricLog([JsonlSink(tmp_path, keep_through_step=-1)])
    progress = Progress(console=Console(quiet=True))
    reporter = Reporter(config, tmp_path, numbers, progress, 0, Geometry(14, 2, 2.0, 768))

    def run(scored, **metrics):
        timed = {"seconds/step": 1.0, "seconds/rollout": 0.5}
        reporter.step(0, scored, timed | {name.replace("__", "/"): value for name, value in metrics.items()})
        return json.loads((tmp_path / "metrics.jsonl").read_text())

    return run


def scored():
    return [score_group(golden_group(), [WeightedReward("window", temporal_iou, Segment.SAMPLING)])]


def test_a_step_is_logged_with_everything_that_was_measured(step):
    line = step(scored(), parity__mean__reasoning=1e-7)
    assert line["step"] == 1 and line["reward/term/window"] == 0.25 and line["rollout/trajectories"] == 4
    assert "advantage/sampling" in line and "memory/driver" in line


@pytest.mark.parametrize("drift", [2.0, math.nan])
def test_engine_and_learner_that_disagree_stop_the_run_and_nan_is_no_agreement(step, drift):
    with pytest.raises(GateError, match="step 1: engine and learner"):
        step(scored(), parity__mean__sampling=drift)


def test_videos_that_cannot_be_read_stop_the_run_when_they_are_many(step):
    lost = Trajectory((), StopReason.VIDEO_ERROR, note="clip.mp4: cannot be opened")
    group = TrajectoryGroup(golden_group().task, (lost,) * 4, None)
    with pytest.raises(GateError, match="100% of the trajectories could not be read"):
        step([score_group(group, [WeightedReward("window", temporal_iou, Segment.SAMPLING)])])
