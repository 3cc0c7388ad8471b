"""What a learner recomputes: the cheapest of what fits, and never more than it is told where nothing is known."""

from dataclasses import replace

import pytest

from rl.memory_plan.plan import memory_plan
from rl.memory_plan.recomputation import choices, recomputed_flops
from rl.policy.structure import tiny_structure
from tests.rl.memory_plan.test_plan import LARGE, shapes, shipped

AUTO = ("learner.activation_checkpointing=auto",)
TRAINED = (*AUTO, "learner.freeze_vision=false")
FEW_LOOKS = ("retrieval.max_calls=0", "video.coarse.max_visual_tokens=512")
SHORT = ("rollout.engine.max_model_len=8192", "learner.micro_tokens=8192", "video.coarse.max_visual_tokens=4096")


def three(*overrides):
    return shipped("sd_grpo_qwen2_5_vl_3b", *overrides)


def planned(gpu_gib, *overrides):
    return memory_plan(three(*overrides), shapes("qwen2_5_vl", "3b"), replace(LARGE, gpu_gib=gpu_gib))


@pytest.mark.parametrize(
    ("settings", "tried"),
    [
        (TRAINED, ("none", "vision", "language", "all")),
        ((*TRAINED, *FEW_LOOKS), ("none", "vision", "language", "all")),
        (AUTO, ("none", "language")),  # the tower is frozen
        (("learner.activation_checkpointing=all",), ("all",)),
        (("learner.activation_checkpointing=none",), ("none",)),
        ((*TRAINED, "placement.learner_gpus=0", "placement.rollout_gpus=0"), ("none",)),
    ],
)
def test_choices_are_tried_in_the_order_of_what_they_compute_again(settings, tried):
    assert choices(three(*settings), shapes("qwen2_5_vl", "3b"), 80.0) == tried


def test_few_visual_tokens_make_the_tower_the_cheaper_part_by_far():
    costs = {few: recomputed_flops(three(*TRAINED, *few), shapes("qwen2_5_vl", "3b")) for few in ((), FEW_LOOKS)}
    (language, vision), (language_few, vision_few) = costs[()], costs[FEW_LOOKS]
    assert language_few == language and vision_few < 0.1 * vision


def test_a_tower_whose_graph_is_not_kept_for_shared_blocks_costs_a_pass_more():
    structure = shapes("qwen2_5_vl", "3b")
    whole = ("learner.micro_tokens=0", "learner.micro_batch=8")
    cut = ("learner.micro_tokens=0", "learner.micro_batch=4")
    kept, twice = (recomputed_flops(three(*TRAINED, *limit), structure) for limit in (whole, cut))
    per_token = [cost / (4 if limit is cut else 8) for limit, (cost, _) in ((whole, kept), (cut, twice))]
    assert per_token[0] == per_token[1]  # of the language model's layers: as many trajectories, as much
    gathered = recomputed_flops(three(*TRAINED, *cut, "learner.zero_stage=3"), structure)
    assert twice[1] > 2 * gathered[1]  # there it is not kept anyway


@pytest.mark.parametrize(
    ("gpu_gib", "settings", "chosen"),
    [
        (100, (*TRAINED, "policy.lora.rank=8"), "language"),  # whose targets leave the tower frozen
        (1000, TRAINED, "none"),
        (80, TRAINED, "all"),
        (70, (*TRAINED, *SHORT), "language"),
        (80, (*TRAINED, *SHORT), "vision"),
        (80, AUTO, "language"),
        (80, (*AUTO, *SHORT), "none"),
        (20, AUTO, "language"),  # the plan does not fit, and says what else helps
        (0, TRAINED, "none"),  # nobody has named the GPU
    ],
)
def test_auto_is_the_cheapest_with_which_learners_fit(gpu_gib, settings, chosen):
    plan = planned(gpu_gib, *settings)
    assert plan.recomputed == plan.as_dict()["activation_checkpointing"] == chosen
    assert planned(gpu_gib, *settings, f"learner.activation_checkpointing={chosen}") == plan
    if plan.learners_fit:
        tried = choices(three(*settings), shapes("qwen2_5_vl", "3b"), gpu_gib)
        cheaper = tried[: tried.index(chosen)]
        assert not any(
            planned(gpu_gib, *settings, f"learner.activation_checkpointing={c}").learners_fit for c in cheaper
        )


def test_each_part_saves_what_it_keeps_no_more():
    held = {
        part: planned(80, *TRAINED, f"learner.activation_checkpointing={part}").places[1].num_bytes
        for part in ("none", "vision", "language", "all")
    }
    assert held["all"] < min(held["vision"], held["language"]) and max(held["vision"], held["language"]) < held["none"]


def test_on_the_cpu_nothing_is_recomputed_that_nobody_asked_for():
    config = shipped("quickstart")
    assert config.learner.activation_checkpointing == "auto"
    assert memory_plan(config, tiny_structure(config.policy), LARGE).recomputed == "none"
