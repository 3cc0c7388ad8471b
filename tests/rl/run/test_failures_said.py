"""A failure is said at once, once per cause; at the end of the run, how much each cause has cost."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from actors.reward import RewardError
from rewards.golden import golden_group
from rewards.scoring import WeightedReward, score_group
from rl.config.file import load_config
from rl.run.run import Run
from rl.tracking.failures import read_failures
from rl.trajectory import Segment
from tests.envs.setting import make_processor
from tests.test_architecture import ROOT


def raises(task, trajectory):
    return {}["gold"]


class Pool:
    """Scores in this process with a reward that raises; refuses if told so."""

    def __init__(self):
        self.refuses = False

    def wake(self, listener):
        pass

    def score_all(self, groups, *, step):
        return [score_group(group, [WeightedReward("mine", raises, Segment.REASONING)]) for group in groups]

    def refuse_too_many_failures(self, scored):
        if self.refuses:
            raise RewardError("too many")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("rl.run.run.load_groups", list)  # groups are here, not in the object store
    config = load_config([ROOT / "configs" / "quickstart.yaml"])
    console = Console(file=io.StringIO(), soft_wrap=True, width=80)
    parts = {"policy_dir": tmp_path, "slots": None, "tasks": (), "held_out": (), "rollouts": Pool()}
    parts |= {"writer": SimpleNamespace(run_dir=tmp_path, check=lambda: None), "log_file": tmp_path / "driver.log"}
    parts |= {"saver": SimpleNamespace(copy_earlier=lambda: None), "rewards": Pool()}
    run = Run(config, console, processor=make_processor(tmp_path), **parts)
    run.begin()
    run.step = 3
    return run


def said(run):
    return [line[9:] for line in run.console.file.getvalue().splitlines()]


def test_a_cause_is_said_at_once_and_not_again(run):
    run.score([golden_group()], step=0)
    run.score([golden_group(), golden_group()], step=0)
    (line,) = said(run)
    assert line.startswith("masked 4 trajectories: reward 'mine' raised KeyError: 'gold' on task ")
    assert f'at {__file__}:{raises.__code__.co_firstlineno + 1} in raises: return {{}}["gold"]' in line
    assert f"(step 3, {run.run_dir}/failures.jsonl has traceback and trajectory)" in line


def test_the_end_of_a_run_tells_how_many_trajectories_a_cause_has_cost(run):
    run.score([golden_group()], step=0)
    run.say_repeated_failures()
    assert len(said(run)) == 1  # all of it has been said
    for _ in range(2):
        run.score([golden_group()], step=0)
    run.say_repeated_failures()
    assert said(run)[-1].startswith("masked 12 trajectories in all: reward 'mine' raised KeyError")


def test_a_run_that_is_refused_for_its_failures_has_written_them_down(run):
    run.rewards.refuses = True
    with pytest.raises(RewardError, match=f"too many; {run.run_dir}/failures.jsonl has traceback and trajectory"):
        run.score([golden_group()], step=0)
    (failure,) = read_failures(run.run_dir)
    assert failure.traceback.endswith("KeyError: 'gold'\n")


def test_the_error_that_names_a_cause_is_the_only_line_that_does(run):
    run.rewards.refuses = True
    with pytest.raises(RewardError):
        run.score([golden_group()], step=0)
    assert len(said(run)) == 1  # "too many" does not name it
    run.failures.add = lambda step, scored: [replace(read_failures(run.run_dir)[0], cause="too many")]
    with pytest.raises(RewardError):
        run.score([golden_group()], step=0)
    assert len(said(run)) == 1


def test_tracebacks_are_for_those_who_ask_for_them(run, caplog):
    with caplog.at_level("DEBUG", logger="rl"):
        run.score([golden_group()], step=0)
    assert any("Traceback" in record.getMessage() and record.levelname == "DEBUG" for record in caplog.records)
