"""Profiles of the steps that are named: begun before one, written after it, nothing otherwise."""

from io import StringIO

import pytest
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.trainer import TrainerConfig
from rl.run.profiles import Profiles
from rl.run.timeline import Timeline
from rl.tracking.backlog import Backlog


class Workers:
    def __init__(self, kind, log):
        self.kind, self.log = kind, log

    def begin_profiles(self):
        self.log.append(f"{self.kind} begin")

    def write_profiles(self, folder):
        self.log.append(f"{self.kind} write {folder.name}")
        return [f"{self.kind}_0.json.gz"]


def run_of(steps, profiled, tmp_path):
    log, said = [], StringIO()
    workers = [Workers("rollout", log), Workers("learner", log)]
    timeline = Timeline(tmp_path, Backlog(max_failed=1))
    profiles = Profiles(profiled, tmp_path, workers, Console(file=said, width=500), timeline)
    profiles.before(1)
    for step in range(1, steps + 1):
        log.append(f"step {step}")
        profiles.after(step)
        profiles.before(step + 1)
    written = [span.worker for span in timeline._spans]
    assert written == ["profile"] * len(profiled)
    return log, said.getvalue()


def test_a_profile_is_of_its_step_and_is_named_where_it_lies(tmp_path):
    log, said = run_of(4, [1, 3], tmp_path)
    assert log == [
        *("rollout begin", "learner begin", "step 1", "rollout write step_1", "learner write step_1", "step 2"),
        *("rollout begin", "learner begin", "step 3", "rollout write step_3", "learner write step_3", "step 4"),
    ]
    assert f"profiles of step 3: {tmp_path / 'profiles' / 'step_3'} (rollout_0.json.gz, learner_0.json.gz)" in said


def test_without_steps_to_profile_nothing_is_asked_of_anybody(tmp_path):
    log, said = run_of(2, [], tmp_path)
    assert (log, said) == (["step 1", "step 2"], "")


@pytest.mark.parametrize("steps", [[0], [3, -1]])
def test_steps_count_from_one(steps):
    with pytest.raises(ConfigError, match=r"trainer\.profile_steps counts steps from 1"):
        TrainerConfig(profile_steps=steps)
