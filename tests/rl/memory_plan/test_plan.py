"""A run's plan: what lies where, what is refused, and which keys help."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.config.file import load_config
from rl.learner.settings import deepspeed_settings
from rl.memory_plan.engine import with_sequences
from rl.memory_plan.learner import learner_memory
from rl.memory_plan.links import link_memory
from rl.memory_plan.plan import Hardware, memory_plan
from rl.memory_plan.record import GIB, GivenUp, Item, MemoryPlan, Place
from rl.memory_plan.remedies import remedies
from rl.memory_plan.trajectory import longest_trajectory, micro_batch, packed_values, shared_graph
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
    link = next(item for item in engine.items if item.name == "engine: buffers of the link to learners")
    assert engine.num_bytes - link.num_bytes == pytest.approx(0.85 * 80 * GIB)
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


SHARED = ("placement.rollout_gpus=0.5", "placement.learner_gpus=0.5", "rollout.engine.gpu_memory_utilization=0.4")


def shared(how, hardware):
    config = shipped("sd_grpo_qwen2_5_vl_3b", *SHARED, f"placement.share_gpus={how}")
    return memory_plan(config, shapes("qwen2_5_vl", "3b"), hardware)


@pytest.mark.parametrize(
    ("gpu_gib", "node_gib", "given_up"),
    [
        (80, 1000, GivenUp(states=False)),  # an engine, its KV cache and the learner's states beside each other: 57 GiB
        (42, 1000, GivenUp(states=True)),  # 42 GiB are too many
        (80, 135, GivenUp(states=False, weights=True)),  # 143 GiB with the weights of sleeping engines, 129 without
        (0, 1000, GivenUp(states=True)),  # a GPU that nobody has named
        (0, None, GivenUp(states=True)),
    ],
)
def test_who_takes_turns_on_a_gpu_gives_up_as_little_as_there_is_room_for(gpu_gib, node_gib, given_up):
    hardware = Hardware(gpu_gib=gpu_gib, node_bytes=node_gib and node_gib * GIB)
    plan = shared("turns", hardware)
    assert plan.fits and plan.given_up == given_up
    assert shared("split", hardware).given_up is None
    on_host = {
        "weights of engines that sleep": not given_up.weights,
        "masters and moments while engines": given_up.states,
    }
    for name, is_there in on_host.items():
        assert any(item.name.startswith(name) for item in plan.places[-1].items) is is_there


def test_who_takes_turns_on_a_gpu_is_counted_one_after_the_other():
    small = replace(LARGE, gpu_gib=42)
    (split, *_, split_node), (turns, *_, node) = (shared(how, small).places for how in ("split", "turns"))
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
        ("learner.activation_checkpointing=none", True),
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


TRAINED = ("learner.freeze_vision=false", "learner.micro_tokens=0", "learner.activation_checkpointing=language")
LOOKLESS = ("retrieval.max_calls=0",)


def trained_tower(*settings):
    """A learner of the 3B on six ranks, groups of eight; and its longest trajectory."""
    config, structure = shipped("sd_grpo_qwen2_5_vl_3b", *TRAINED, *settings), shapes("qwen2_5_vl", "3b")
    options = deepspeed_settings(config.learner, "bfloat16", 1, on_cuda=True)
    return learner_memory(config, structure, options, cuda=True), longest_trajectory(config, structure.tower)


@pytest.mark.parametrize(
    ("settings", "rows", "met", "kept"),
    [
        (("learner.micro_batch=8",), 8, 1, 1),  # a micro-batch has a whole group, and nothing in common with another
        (("learner.micro_batch=4",), 4, 1, 6),  # all six groups are cut, and their coarse frames kept to the end
        (("learner.micro_batch=4", "rollout.tasks_per_step=6"), 4, 1, 1),
        (("learner.micro_batch=4", *LOOKLESS), 4, 1, 0),  # of six groups more than a micro-batch shows: encoded again
        (("learner.micro_batch=4", "learner.activation_checkpointing=all"), 4, 1, 0),
        (("learner.micro_batch=4", "learner.zero_stage=3"), 4, 1, 0),
        (("learner.micro_batch=8", "learner.shared_prefix=off"), 8, 6, 6),  # filled by length: any group may be met
        (("learner.micro_batch=4", "learner.freeze_vision=true"), 4, 1, 1),
    ],
)
def test_blocks_that_micro_batches_have_in_common_keep_their_graph(settings, rows, met, kept):
    config, tower = shipped("sd_grpo_qwen2_5_vl_3b", *TRAINED, *settings), shapes("qwen2_5_vl", "3b").tower
    longest = longest_trajectory(config, tower)
    looks, coarse = rows * longest.look_values, longest.coarse_values
    assert shared_graph(config, longest) == pytest.approx((looks + kept * coarse) / (looks + met * coarse))
    assert micro_batch(config, longest).frames_values == looks + met * coarse


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        (("learner.micro_batch=8",), 0),
        (("learner.micro_batch=4",), 6),
        (("learner.micro_batch=4", "learner.updates_per_step=2"), 3),
        (("learner.micro_batch=8", "learner.shared_prefix=off"), 6),
        (("learner.micro_batch=4", "learner.freeze_vision=true"), 0),  # its features are constant
        (("learner.micro_batch=4", "learner.sequence_parallel=2"), 0),
    ],
)
def test_tokens_of_blocks_in_common_and_their_gradients_are_there_until_the_step_ends(settings, groups):
    learner, longest = trained_tower(*settings)
    coarse = longest.coarse_values / (longest.coarse_values + longest.look_values) * longest.visual_tokens
    assert learner.shared_videos == pytest.approx(groups * coarse * 2048 * (4 + 4 + 2), rel=1e-3)
    for moment in (learner.backward(), learner.stepping()):
        named = {item.name: item.num_bytes for item in moment}
        assert named.get("tokens of videos that micro-batches share", 0) == learner.shared_videos


@pytest.mark.parametrize(
    ("name", "settings", "sender", "receiver"),
    [
        ("sd_grpo_qwen2_5_vl_3b", (), True, True),  # nccl
        ("sd_grpo_qwen2_5_vl_3b", ("weight_sync.transport=object_store",), False, False),
        (
            "sd_grpo_qwen2_5_vl_3b",
            ("placement.rollout_gpus=0.4", "placement.learner_gpus=0.6", "rollout.engine.gpu_memory_utilization=0.3"),
            True,
            False,  # ipc: receivers read where the sender's lie
        ),
    ],
)
def test_links_take_two_buffers_on_each_side_that_has_its_own(name, settings, sender, receiver):
    config = shipped(name, *settings)
    places = memory_plan(config, shapes(*SHIPPED[name]), LARGE).places
    items = {item.name: item.num_bytes for place in places for item in place.items}
    embeddings, largest = 151_936 * 2048 * 2, (4 * 1280) ** 2 * 2  # tied: one of the two is the largest parameter
    buffers = 2 * config.weight_sync.bucket_bytes + embeddings + largest
    assert items.get("learner: buffers of the link to engines", 0) == sender * buffers
    assert items.get("engine: buffers of the link to learners", 0) == receiver * buffers


def test_a_head_with_weights_of_its_own_fills_the_other_buffer():
    config = shipped("sd_grpo_qwen3_vl_8b")
    bucket, embeddings = config.weight_sync.bucket_bytes, 151_936 * 4096 * 2
    assert link_memory(config, shapes("qwen3_vl", "8b"), 2).receiver == 2 * (bucket + embeddings)


def test_micro_batches_on_their_way_to_a_gpu_are_pinned_in_powers_of_two():
    def packed(name):
        config = shipped(name)
        places = memory_plan(config, shapes("qwen2_5_vl", "3b"), LARGE).places
        tower, ranks = shapes("qwen2_5_vl", "3b").tower, config.learner.num_ranks
        values = ranks * packed_values(config, longest_trajectory(config, tower))
        return {item.name: item.num_bytes for item in places[-1].items}["packed micro-batches"] / values

    assert (packed("sd_grpo_qwen2_5_vl_3b"), packed("quickstart")) == (2, 1)


@pytest.mark.parametrize(("transport", "buffers"), [("object_store", 0), ("gloo", 1 + 2), ("ipc", 2)])
def test_between_cpus_buffers_are_in_main_memory(transport, buffers):
    """Of two ranks and two engines: gloo has one sender, shared memory one beside each engine."""
    config = shipped("quickstart", f"weight_sync.transport={transport}", "rollout.num_workers=2")
    structure = tiny_structure(config.policy)
    (node,) = memory_plan(config, structure, LARGE).places
    found = {item.name: item.num_bytes for item in node.items}
    each = link_memory(config, structure, 4).sender
    assert found.get("buffers of links to engines", 0) == buffers * each and (each > 0) == (buffers > 0)


def test_the_fullest_node_of_a_cluster_counts():
    config = shipped("sd_grpo_qwen3_vl_8b")  # 2 engines, 6 learners
    one, two = (
        memory_plan(config, shapes("qwen3_vl", "8b"), replace(LARGE, gpus_per_node=per_node)).places[-1]
        for per_node in (8, 4)
    )
    assert (one.name, two.name) == ("the machine", "the fullest of 2 nodes")
    assert two.num_bytes < one.num_bytes


def test_the_settings_that_help_are_tried_and_the_best_come_first():
    config = shipped("sd_grpo_qwen2_5_vl_3b", "learner.activation_checkpointing=none", "learner.zero_stage=1")
    small = replace(LARGE, gpu_gib=48)

    def make_plan(changed):
        return memory_plan(changed, shapes("qwen2_5_vl", "3b"), small)

    plan = make_plan(config)
    found = remedies(config, plan, make_plan)
    assert not plan.fits
    assert str(found[0]).startswith("learner.activation_checkpointing=language saves ")
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
