"""A run's plan: what lies where, what is refused, and which keys help."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.config.file import load_config
from rl.learner.settings import deepspeed_settings
from rl.memory_plan.engine import with_sequences
from rl.memory_plan.learner import learner_memory
from rl.memory_plan.plan import Hardware, memory_plan
from rl.memory_plan.record import GIB, Item, MemoryPlan, Place
from rl.memory_plan.remedies import remedies
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import read_structure, tiny_structure

CONFIGS = Path(__file__).parents[3] / "configs"
LARGE = Hardware(gpu_gib=80, gpu_name="a100-80gb", node_bytes=1000 * GIB)


def shapes(family, size):
    return read_structure(model_config(BY_NAME[family, size]), "config.json", init_frames=6)


def shipped(name, *overrides):
    return load_config([CONFIGS / f"{name}.yaml"], list(overrides))


SHIPPED = {
    "sd_grpo_qwen2_5_vl_3b": ("qwen2_5_vl", "3b"),
    "sd_grpo_qwen2_5_vl_7b": ("qwen2_5_vl", "7b"),
    "sd_grpo_qwen3_vl_4b": ("qwen3_vl", "4b"),
    "sd_grpo_qwen3_vl_8b": ("qwen3_vl", "8b"),
}


@pytest.mark.parametrize(("name", "size"), SHIPPED.items())
def test_every_shipped_configuration_fits_the_gpus_it_names(name, size):
    plan = memory_plan(shipped(name), shapes(*size), LARGE)
    assert plan.fits, plan.as_dict()
    assert [place.count for place in plan.places[:-1]] == [
        shipped(name).rollout.num_workers,
        shipped(name).learner.num_ranks,
    ]


def test_an_engine_fills_its_share_and_leaves_the_rest_to_the_kv_cache():
    config = shipped("sd_grpo_qwen2_5_vl_3b")
    engine = memory_plan(config, shapes("qwen2_5_vl", "3b"), LARGE).places[0]
    assert engine.num_bytes == pytest.approx(0.85 * 80 * GIB)
    assert engine.largest.name == "engine: KV cache"


@pytest.mark.parametrize(
    ("name", "gpu_gib", "sequences"),
    [
        ("sd_grpo_qwen2_5_vl_3b", 40, 29),
        ("sd_grpo_qwen2_5_vl_3b", 80, 76),
        ("sd_grpo_qwen3_vl_8b", 80, 15),  # 147 kB a token, where the 3B has 37
        ("sd_grpo_qwen3_vl_8b", 24, 1),  # less than one: told by the plan
        ("sd_grpo_qwen2_5_vl_3b", 1000, 144),  # no more than a step brings an engine: 36 / 2 groups of 8
        ("sd_grpo_qwen2_5_vl_3b", 0, 144),  # a GPU that nobody has named
    ],
)
def test_an_engine_decodes_as_many_trajectories_as_its_kv_cache_holds(name, gpu_gib, sequences):
    config = with_sequences(shipped(name), shapes(*SHIPPED[name]), 2, gpu_gib)
    assert config.rollout.engine.max_num_seqs == sequences


@pytest.mark.parametrize(("mib", "sequences"), [(64, 52), (4, 3), (1, 1)])
def test_on_the_cpu_the_kv_cache_is_what_the_configuration_says(mib, sequences):
    """2 KiB a token; of 640 tokens siblings share those of the coarse frames, 16 at the least, among four."""
    overrides = ("rollout.engine.max_num_seqs=0", "rollout.group_size=4", "rollout.tasks_per_step=64")
    config = shipped("quickstart", *overrides, f"rollout.engine.kv_cache_bytes={mib * 2**20}")
    decided = with_sequences(config, tiny_structure(config.policy), 4, 0)
    assert decided.rollout.engine.max_num_seqs == sequences == max(1, mib * 2**20 // (2048 * (640 - 12)))


def test_a_number_that_is_given_stands():
    config = shipped("sd_grpo_qwen2_5_vl_3b", "rollout.engine.max_num_seqs=7")
    assert with_sequences(config, shapes("qwen2_5_vl", "3b"), 2, 80) is config


def test_who_takes_turns_on_a_gpu_is_counted_one_after_the_other():
    shared = ("placement.rollout_gpus=0.5", "placement.learner_gpus=0.5", "rollout.engine.gpu_memory_utilization=0.4")

    def planned(how):
        config = shipped("sd_grpo_qwen2_5_vl_3b", *shared, f"placement.share_gpus={how}")
        return memory_plan(config, shapes("qwen2_5_vl", "3b"), LARGE)

    (split, *_, split_node), (turns, *_, node) = planned("split").places, planned("turns").places
    assert turns.num_bytes < split.num_bytes  # one of them at a time
    assert not {"engine: KV cache", "learner: masters and moments"} <= {item.name for item in turns.items}
    left = {"weights of engines that sleep", "masters and moments while engines sample"}
    assert left <= {item.name for item in node.items} and not left & {item.name for item in split_node.items}


def test_an_engine_that_cannot_hold_one_trajectory_is_refused():
    config = shipped("sd_grpo_qwen3_vl_8b")
    plan = memory_plan(config, shapes("qwen3_vl", "8b"), replace(LARGE, gpu_gib=24))
    (demand,) = plan.unmet
    assert "an engine needs 25.5 GiB" in demand.reason
    assert "one trajectory of 24576 tokens, and may take 20.4 GiB" in demand.reason


@pytest.mark.parametrize(
    ("setting", "rises"),
    [
        ("learner.zero_stage=1", True),
        ("learner.activation_checkpointing=false", True),
        ("learner.micro_tokens=49152", True),
        ("learner.sequence_parallel=2", False),
        ("policy.dtype=float32", True),
        ("learner.freeze_vision=false", True),
        ("algorithm.loss.kl_beta=0", False),
        ("rollout.engine.max_model_len=12288 learner.micro_tokens=12288", False),
    ],
)
def test_the_learners_memory_follows_its_keys(setting, rises):
    def learner(*overrides):
        plan = memory_plan(shipped("sd_grpo_qwen2_5_vl_3b", *overrides), shapes("qwen2_5_vl", "3b"), LARGE)
        return plan.places[1].num_bytes

    changed = learner(*setting.split())
    assert (changed > learner()) is rises and changed != learner()


def test_more_ranks_take_less_each():
    def learner(ranks):
        settings = (f"learner.num_ranks={ranks}", f"rollout.tasks_per_step={4 * ranks}", "learner.zero_stage=3")
        return memory_plan(shipped("sd_grpo_qwen3_vl_8b", *settings), shapes("qwen3_vl", "8b"), LARGE).places[1]

    assert learner(8).num_bytes < learner(4).num_bytes < learner(2).num_bytes


def test_workers_on_the_cpu_are_in_main_memory_and_on_no_gpu():
    config = shipped("quickstart")
    plan = memory_plan(config, shapes("qwen2_5_vl", "3b"), Hardware(node_bytes=8 * GIB))
    (node,) = plan.places
    assert {"learners: masters and moments", "engines: weights", "engines: KV cache"} <= {i.name for i in node.items}
    assert not plan.fits


@pytest.mark.parametrize(("freeze", "kept"), [("true", 6 * 2 * GIB), ("false", 0)])
def test_kept_features_of_a_frozen_tower_are_in_main_memory(freeze, kept):
    settings = (f"learner.freeze_vision={freeze}", f"learner.vision_cache_bytes={2 * GIB}")
    plan = memory_plan(shipped("sd_grpo_qwen2_5_vl_3b", *settings), shapes("qwen2_5_vl", "3b"), LARGE)
    found = {item.name: item.num_bytes for item in plan.places[-1].items}
    assert found.get("features of the frozen vision tower", 0) == kept


@pytest.mark.parametrize(("micro_batch", "times"), [(8, 1), (4, 2)])
def test_blocks_that_micro_batches_have_in_common_keep_their_graph(micro_batch, times):
    def tower(*settings):
        common = ("learner.freeze_vision=false", "learner.micro_tokens=0", f"learner.micro_batch={micro_batch}")
        config = shipped("sd_grpo_qwen2_5_vl_3b", "rollout.group_size=8", *common, *settings)
        settings = deepspeed_settings(config.learner, "bfloat16", 1, on_cuda=True)
        return learner_memory(config, shapes("qwen2_5_vl", "3b"), settings, cuda=True).activations.tower

    kept = tower("learner.activation_checkpointing=false", "learner.zero_stage=2")
    gathered = tower("learner.activation_checkpointing=false", "learner.zero_stage=3")
    assert kept == times * gathered


def test_the_fullest_node_of_a_cluster_counts():
    config = shipped("sd_grpo_qwen3_vl_8b")  # 2 engines, 6 learners
    one, two = (
        memory_plan(config, shapes("qwen3_vl", "8b"), replace(LARGE, gpus_per_node=per_node)).places[-1]
        for per_node in (8, 4)
    )
    assert (one.name, two.name) == ("the machine", "the fullest of 2 nodes")
    assert two.num_bytes < one.num_bytes


def test_the_settings_that_help_are_tried_and_the_best_come_first():
    config = shipped("sd_grpo_qwen2_5_vl_3b", "learner.activation_checkpointing=false", "learner.zero_stage=1")
    small = replace(LARGE, gpu_gib=48)

    def make_plan(changed):
        return memory_plan(changed, shapes("qwen2_5_vl", "3b"), small)

    plan = make_plan(config)
    found = remedies(config, plan, make_plan)
    assert not plan.fits
    assert str(found[0]).startswith("learner.activation_checkpointing=true saves ")
    assert [remedy.saved for remedy in found] == sorted((remedy.saved for remedy in found), reverse=True)
    tried = make_plan(shipped("sd_grpo_qwen2_5_vl_3b", "learner.zero_stage=1"))
    assert found[0].fits is tried.fits


def test_a_place_tells_its_largest_item_and_what_it_lacks():
    place = Place("GPU", (Item("weights", 3.0 * GIB), Item("KV cache", 4.0 * GIB)), 6.0 * GIB, count=2)
    plan = MemoryPlan((place,))
    assert (place.largest.name, place.fits, place.lacking) == ("KV cache", False, GIB)
    assert plan.lacking == 2 * GIB
    assert plan.as_dict()["places"][0]["items"] == {"weights": 3.0, "KV cache": 4.0}
    assert Place("GPU", place.items, None).fits  # nothing is known against it
