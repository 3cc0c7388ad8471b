"""A run that version 0.3.0 wrote is still read: opened, resumed, ranked and exported.

run_of_0_3_0/ was written by that version's own code: two checkpoints by two ranks at ZeRO 1, with one parameter of six
elements and the quickstart's configuration, whose keys have other names today (rl/config/renamed.py).
"""

import shutil
from pathlib import Path

import pytest

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.learner.partition import locate_fragments
from rl.learner.rank_files import read_rank_files
from rl.run.resume import checkpoint_of, find_checkpoint
from rl.trajectory import RunState

RECORDED = Path(__file__).with_name("run_of_0_3_0")
QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(RECORDED, tmp_path / "quickstart"))


def resumed(run, *overrides):
    """The checkpoint that today's quickstart goes on from, and what it says about other settings."""
    config = load_config([QUICKSTART], [f"output_dir={run.parent}", *overrides])
    said = []
    found = find_checkpoint(config, CheckpointStore(run, best_metric=config.trainer.best_metric), say=said.append)
    return found, said


def test_the_quickstart_goes_on_from_it_though_keys_have_other_names_today(run):
    found, said = resumed(run)
    assert found.state == RunState(step=100, policy_version=100, seed=0)
    assert [line.split(":")[0].strip() for line in said[1:]] == ["output_dir"]


def test_a_setting_under_its_old_name_is_compared_with_the_one_of_today(run):
    with pytest.raises(ConfigError, match=r"video\.coarse\.max_frames: 8 -> 6"):
        resumed(run, "video.coarse.max_frames=6", "video.coarse.min_frames=6")


def test_another_number_of_ranks_reads_its_learner_state(run):
    found, _ = resumed(run, "learner.num_ranks=4", "learner.zero_stage=3")
    located = locate_fragments(read_rank_files(found.folder))
    assert [(fragment.start, fragment.numel) for _, fragment in located["w"]] == [(0, 3), (3, 3)]


def test_its_best_checkpoint_is_known(run):
    assert CheckpointStore(run).best_score()[0] == 75
    assert checkpoint_of(run, best=True).folder == run / "checkpoints" / "step_00000075"
