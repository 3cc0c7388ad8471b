"""The memory plan of a fine-tuning run: learners only, and of what conversations can become."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.config.file import load_config
from rl.memory_plan.plan import Hardware, memory_plan
from rl.memory_plan.trajectory import longest_trajectory, micro_batch
from rl.policy.sizes import SIZES
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import read_structure

CONFIGS = Path(__file__).parents[3] / "configs"
H100 = Hardware(gpu_gib=79.6, gpu_name="h100-80gb")


def structure_of(config):
    size = next(size for size in SIZES if size.repository == config.policy.path)
    return read_structure(model_config(size), size.repository, init_frames=6)


@pytest.mark.parametrize("name", ["flexivideo_qwen2_5_vl_3b", "flexivideo_qwen3_vl_4b"])
def test_the_recipes_fit_the_gpus_they_name_and_have_no_engines(name):
    config = load_config([CONFIGS / f"{name}.yaml"])
    gpu, node = memory_plan(config, structure_of(config), H100).places
    assert gpu.fits and gpu.count == 8 and not any("engine" in item.name for item in (*gpu.items, *node.items))
    assert not memory_plan(config, structure_of(config), replace(H100, gpu_gib=22.5)).fits


def test_what_frames_are_compared_by_lies_in_every_process_that_makes_samples():
    scenes = ("policy.scenes.difference=features", "policy.scenes.difference_scale=1")
    config = load_config([CONFIGS / "flexivideo_qwen2_5_vl_3b.yaml"], scenes)
    tower, node = structure_of(config).tower, memory_plan(config, structure_of(config), H100).places[-1]
    (item,) = (item for item in node.items if item.name == "features that frames are compared by")
    assert item.num_bytes == config.finetune.num_workers * 4 * tower.feature_parameters
    assert 80e6 < 4 * tower.feature_parameters < 90e6


def test_a_micro_batch_is_as_long_as_packing_lets_it_be():
    config = load_config([CONFIGS / "flexivideo_qwen2_5_vl_3b.yaml"])
    tower = structure_of(config).tower

    def tokens(**learner):
        changed = replace(config, learner=replace(config.learner, **learner))
        return micro_batch(changed, longest_trajectory(changed, tower)).tokens

    assert tokens() == 16384 and tokens(micro_tokens=100) == config.finetune.max_tokens  # one is never cut
    assert tokens(micro_tokens=0, micro_batch=4) == 4 * config.finetune.max_tokens
    assert tokens(micro_tokens=0, micro_batch=64) == 8 * config.finetune.max_tokens  # a rank's share of a batch
