"""Whatever stage, number of ranks and micro-batch: the gradient of the whole batch, as plain PyTorch has it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Listener
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rl.checkpoint.manifest import file_record, files_under
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.learner.rank_files import read_rank_files
from rl.policy.tiny import build_tiny_policy

pytestmark = pytest.mark.deepspeed
TINY = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600)
TIMEOUT_S = 240
QWEN2_5, QWEN3, TIED = "qwen2_5_vl", "qwen3_vl", " with a tied head"


class Ranks:
    """`ranks(scenario, policy=…, **arguments)`: a method of learner_ranks.Rank, run on every rank; rank 0's result."""

    def __init__(self, world, policy_dir, folder, device="cpu"):
        self._policy_dir = policy_dir
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        script, root = Path(__file__).with_name("learner_ranks.py"), Path(__file__).parents[3]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": device, "PYTHONPATH": str(root)}
        addresses = [str(folder / f"rank{rank}of{world}") for rank in range(world)]
        listeners = [Listener(address, family="AF_UNIX") for address in addresses]
        self._processes = [
            subprocess.Popen(
                list(map(str, (sys.executable, script, address, rank, world, port))),
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            for rank, address in enumerate(addresses)
        ]
        self._connections = [listener.accept() for listener in listeners]

    def __call__(self, scenario, *, policy=QWEN2_5, **arguments):
        for connection in self._connections:
            connection.send((self._policy_dir(policy), scenario, arguments))
        answers = []
        for connection in self._connections:
            assert connection.poll(TIMEOUT_S), f"{scenario} did not end within {TIMEOUT_S} s"
            answers.append(connection.recv())
        for fine, answer in answers:
            assert fine, answer
        return answers[0][1]

    def stop(self):
        for process, connection in zip(self._processes, self._connections, strict=True):
            with contextlib.suppress(OSError):
                connection.send(None)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    """`policy_dir(QWEN3 + TIED)`: tiny policies of both families, with a head of their own or a tied one."""
    home = tmp_path_factory.mktemp("learner")

    def get(policy):
        if not (home / policy).exists():
            family, tied, _ = policy.partition(TIED)
            sizes = replace(TINY, family=family)
            build_tiny_policy(sizes, ScenesConfig(), home / policy, seed=7, tied=bool(tied))
        return home / policy

    return get


@pytest.fixture(scope="module")
def world_of(policy_dir, tmp_path_factory):
    """`world_of(2)`: rank processes, started on first use and shared by all tests."""
    started = {}

    def get(world):
        if world not in started:
            started[world] = Ranks(world, policy_dir, tmp_path_factory.mktemp("sockets"))
        return started[world]

    yield get
    for ranks in started.values():
        ranks.stop()


@pytest.fixture(scope="module")
def plain_of(world_of):
    """`plain_of(policy)`: what plain PyTorch makes of it; each once for all tests."""
    return cache(lambda policy: world_of(1)("plain", policy=policy))


@pytest.fixture(scope="module")
def plain(plain_of):
    return plain_of(QWEN2_5)


COUNTED = (
    *("loss/surrogate", "policy/entropy", "policy/clip_fraction/sampling", "grad/norm", "parity/max/reasoning"),
    *("update/trajectories", "update/tokens", "update/learned_tokens", "update/optimizer_steps", "update/lr"),
)


def deviation(ours, theirs):
    """Largest difference of any gradient, relative to the largest entry of all."""
    assert ours.keys() == theirs.keys()
    scale = max(np.abs(gradient).max() for gradient in theirs.values())
    return max(np.abs(ours[name] - theirs[name]).max() for name in theirs) / scale


def furthest(ours, theirs):
    """Largest difference between two policies' log-probs of the batch."""
    return max(np.abs(np.subtract(a, b)).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("stage", "world", "policy"),
    [
        *((0, 2, QWEN2_5), (1, 2, QWEN3), (2, 2, QWEN2_5 + TIED), (3, 2, QWEN2_5), (3, 2, QWEN3 + TIED)),
        *((0, 1, QWEN3), (1, 1, QWEN2_5 + TIED), (2, 1, QWEN3 + TIED), (3, 1, QWEN2_5)),
    ],
)
def test_every_stage_on_one_rank_and_two_is_plain_pytorch(world_of, plain_of, stage, world, policy):
    """On two ranks one shows no video at all and has one micro-batch to the other's two."""
    plain, learned = plain_of(policy), world_of(world)("update", stage=stage, policy=policy)

    assert deviation(learned["gradients"], plain["gradients"]) < 1e-5
    assert furthest(learned["logprobs"], plain["logprobs"]) < 1e-4
    assert learned["metrics"][-1]["grad/norm"] == pytest.approx(plain["norm"], rel=1e-3)


def test_stage_3_is_plain_pytorch_where_every_parameter_is_partitioned(world_of, plain_of, tmp_path):
    """By default small parameters stay whole on every rank; here none does."""
    settings = tmp_path / "deepspeed.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))

    learned = world_of(2)("update", stage=3, deepspeed_config=str(settings), policy=QWEN3)

    assert deviation(learned["gradients"], plain_of(QWEN3)["gradients"]) < 1e-5
    assert furthest(learned["logprobs"], plain_of(QWEN3)["logprobs"]) < 1e-4


def test_stage_3_holds_a_share_of_policy_and_reference_from_the_start(world_of, tmp_path):
    """Rotary frequencies stay float32: transformers' loading under DeepSpeed's `zero.Init` would round them."""
    settings = tmp_path / "deepspeed.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    options = {"stage": 3, "dtype": "bfloat16", "loss": {"kl_beta": 0.1}, "deepspeed_config": str(settings)}

    found = world_of(2)("holding", **options, policy=QWEN3)

    assert found["shares"] == pytest.approx([0.5, 0.5], abs=0.01)
    assert found["buffers"] == {"torch.float32"}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_reference_stays_where_the_run_began(world_of, stage):
    """At stage 3 it is cut up like the policy, and says the same."""
    metrics = world_of(2)("update", stage=stage, loss={"kl_beta": 0.1}, steps=2)["metrics"]
    alone = world_of(1)("update", stage=1, loss={"kl_beta": 0.1}, steps=2)["metrics"]
    assert metrics[0]["loss/kl"] == 0.0 < metrics[1]["loss/kl"]
    assert metrics[1]["loss/kl"] == pytest.approx(alone[1]["loss/kl"], rel=1e-3)


def test_siblings_share_their_opening_in_all_of_these(world_of):
    shared = world_of(1)("update", steps=1)["metrics"][0]["update/shared_prefix_share"]
    assert 0.1 < shared < 0.5
    assert world_of(1)("update", steps=1, shared_prefix="off")["metrics"][0]["update/shared_prefix_share"] == 0


@pytest.mark.parametrize(
    ("stage", "micro_batch", "policy"),
    [(0, 8, QWEN2_5), (1, 1, QWEN2_5), (2, 3, QWEN3), (3, 1, QWEN2_5), (3, 3, QWEN3)],
)
def test_the_micro_batch_does_not_matter(world_of, plain_of, stage, micro_batch, policy):
    most = {"micro_batch": micro_batch, "micro_tokens": 0 if micro_batch > 1 else 60}
    learned = world_of(2)("update", stage=stage, **most, steps=1, policy=policy)
    assert deviation(learned["gradients"], plain_of(policy)["gradients"]) < 1e-5


@pytest.mark.parametrize(("stage", "policy"), [(0, QWEN3), (1, QWEN2_5), (2, QWEN3 + TIED), (3, QWEN2_5)])
def test_two_ranks_with_a_part_of_every_sequence_are_one(world_of, plain_of, stage, policy):
    """Videos and DeepStack's levels are cut where the row is, a loss over whole sequences sees all of it."""
    plain = plain_of(policy)
    learned = world_of(2)("update_in_parallel", stage=stage, policy=policy)
    assert deviation(learned["gradients"], plain["gradients"]) < 1e-5
    assert furthest(learned["logprobs"], plain["logprobs"]) < 1e-4
    alone = world_of(1)("update", stage=stage, policy=policy)["metrics"]
    for ours, theirs in zip(learned["metrics"], alone, strict=True):
        told = {name: value for name, value in ours.items() if name in COUNTED}
        assert told == pytest.approx({name: theirs[name] for name in told}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("normaliser", ["token", "segment"])
def test_denominators_are_those_of_the_whole_batch(world_of, normaliser):
    loss = {"normaliser": normaliser}
    whole = world_of(1)("plain", steps=1, loss=loss)
    learned = world_of(2)("update", steps=1, loss=loss)
    assert deviation(learned["gradients"], whole["gradients"]) < 1e-5


@pytest.mark.parametrize(("stage", "policy"), [(1, QWEN2_5), (2, QWEN3), (3, QWEN3)])
def test_bfloat16_stays_close(world_of, plain_of, stage, policy):
    plain, learned = plain_of(policy), world_of(2)("update", stage=stage, dtype="bfloat16", policy=policy)
    a, b = (
        np.concatenate([g[n].ravel() for n in plain["gradients"]]) for g in (learned["gradients"], plain["gradients"])
    )
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert furthest(learned["logprobs"], plain["logprobs"]) < 0.15


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_gradients_add_up_in_float32(world_of, plain, stage, tmp_path, record_property):
    """Six micro-batches: further from the float32 gradient where they are added in bfloat16, as DeepSpeed would."""
    (tmp_path / "before.yaml").write_text("data_types: {grad_accum_dtype: bf16}\n")
    options = {"stage": stage, "dtype": "bfloat16", "micro_batch": 1, "steps": 1}
    ours = world_of(1)("update", **options)["gradients"]
    before = world_of(1)("update", **options, deepspeed_config=str(tmp_path / "before.yaml"))["gradients"]
    error, error_before = relative_error(ours, plain["gradients"]), relative_error(before, plain["gradients"])
    record_property("relative error", (error, error_before))
    assert error < error_before < 0.05, (error, error_before)


def relative_error(found, exact):
    """Of all gradients together."""
    squares = ((np.square(found[name] - exact[name]).sum(), np.square(exact[name]).sum()) for name in exact)
    wrong, whole = (sum(column) for column in zip(*squares, strict=True))
    return float(np.sqrt(wrong / whole))


@pytest.mark.parametrize(("stage", "policy", "parts"), [(1, QWEN2_5, "vision"), (3, QWEN3, "all")])
def test_activation_checkpointing_changes_nothing(world_of, plain_of, stage, policy, parts):
    learned = world_of(2)("update", stage=stage, activation_checkpointing=parts, steps=1, policy=policy)
    assert deviation(learned["gradients"], plain_of(policy)["gradients"]) < 1e-5


@pytest.mark.parametrize(("stage", "policy"), [(0, QWEN2_5), (2, QWEN3), (3, QWEN3)])
def test_a_frozen_vision_tower_stays_and_the_rest_learns_the_same(world_of, stage, policy):
    """Mergers, DeepStack's among them, are of the rest; learned positions are of the tower."""
    frozen = world_of(1)("plain", frozen=True, steps=1, policy=policy)
    learned = world_of(2)("update", stage=stage, freeze_vision=True, steps=2, policy=policy)

    assert deviation(learned["gradients"], frozen["gradients"]) < 1e-5
    tower = {name.split(".visual.")[1].split(".")[0] for name in learned["moved"] if ".visual." in name}
    assert tower == ({"merger", "deepstack_merger_list"} if policy == QWEN3 else {"merger"})
    assert any(".language_model." in name for name in learned["moved"])


@pytest.mark.parametrize(("stage", "policy"), [(1, QWEN2_5), (3, QWEN3)])
def test_a_frozen_tower_encodes_a_block_once_and_what_is_kept_has_the_bits_of_what_is_computed(world_of, stage, policy):
    """Six blocks on one rank, none on the other; policy and reference score them. A cache that holds half of them drops
    some and computes them again."""
    options = {"stage": stage, "policy": policy, "loss": {"kl_beta": 0.05}}
    off, ample = world_of(2)("remembered", budgets=(0, 10**8), **options)
    kept = ample["metrics"][1]["update/vision_cache_bytes"]
    (half,) = world_of(2)("remembered", budgets=(int(kept / 2),), **options)

    passes = [[run["update/tower_passes_per_block"] for run in found["metrics"]] for found in (off, ample, half)]
    assert passes[:2] == [[2, 2], [1, 0]] and 0 < passes[2][1] < 2
    assert [run["update/vision_cache_hits"] for run in ample["metrics"]] == [0.5, 1]
    assert 0 < half["metrics"][1]["update/vision_cache_bytes"] <= kept / 2
    assert half["digest"] == ample["digest"]
    assert furthest(ample["logprobs"], off["logprobs"]) < 1e-5


@pytest.mark.parametrize(
    ("stage", "policy", "world"), [(0, QWEN2_5, 2), (1, QWEN3, 1), (2, QWEN2_5, 2), (3, QWEN3, 1), (3, QWEN3, 2)]
)
def test_blocks_that_micro_batches_have_in_common_are_encoded_once_and_learn_the_same(world_of, stage, policy, world):
    """Micro-batches of one trajectory against a single one. One rank has all its five blocks more than once; of two
    ranks one has two of its five so, and the other one none of its four."""
    apart, together = world_of(world)("together", micro_batches=(1, 8), stage=stage, policy=policy)
    assert deviation(apart["gradients"], together["gradients"]) < 1e-6
    assert together["metrics"]["update/tower_passes_per_block"] == 1
    blocks, shared = {1: (5, 5), 2: (9, 2)}[world]
    again = shared if stage == 3 or world == 1 else 0  # where the graph is not kept: more than a micro-batch shows
    assert apart["metrics"]["update/tower_passes_per_block"] == pytest.approx((blocks + again) / blocks)
    assert apart["metrics"]["loss/surrogate"] == pytest.approx(together["metrics"]["loss/surrogate"], rel=1e-5)


@pytest.mark.parametrize(("policy", "parts", "passes"), [(QWEN2_5, "language", 9 / 9), (QWEN3, "all", 11 / 9)])
def test_they_learn_the_same_where_activations_are_recomputed(world_of, policy, parts, passes):
    """Their graph is kept where the tower is not recomputed: two blocks are encoded again for it otherwise."""
    options = {"stage": 2, "policy": policy, "activation_checkpointing": parts}
    apart, together = world_of(2)("together", micro_batches=(1, 8), **options)
    assert deviation(apart["gradients"], together["gradients"]) < 1e-6
    assert apart["metrics"]["update/tower_passes_per_block"] == pytest.approx(passes)


def test_parity_is_measured_before_the_policy_moves(world_of):
    """Two optimizer steps on one batch: the second is no longer the policy that sampled."""
    once = world_of(2)("update", steps=1)["metrics"][0]
    twice = world_of(2)("update", steps=1, updates_per_step=2)["metrics"][0]
    assert once["parity/max/sampling"] > once["parity/mean/sampling"] > 0.1  # the behaviour log-probs are made up
    assert 0 < twice["parity/mean/reasoning"] < 1
    assert once["policy/ratio_mean"] == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize(("world", "dealt"), [(1, [[0, 1, 2]]), (2, [[1], [0, 2]])])
@pytest.mark.parametrize("stage", [1, 3])
def test_every_sampled_token_comes_back_with_the_log_prob_it_had_before_the_step(world_of, stage, world, dealt):
    """In the order of groups and siblings, whoever learned from them; None where nothing was learned."""
    found = world_of(world)("learned", stage=stage)
    assert found["dealt"] == dealt
    left_out = [[logprobs_S is None for logprobs_S in logprobs_G] for logprobs_G in found["logprobs_PG"]]
    assert left_out == [[False, False, True], [False, True, False], [True, False, False]]
    assert_seen_are_those_alone(found)


def assert_seen_are_those_alone(found):
    """What came back are the log-probs a fresh policy gives to each trajectory by itself."""
    for logprobs_G, alone_G in zip(found["logprobs_PG"], found["alone_PG"], strict=True):
        for logprobs_S, alone_S in zip(logprobs_G, alone_G, strict=True):
            assert logprobs_S is None or logprobs_S == pytest.approx(alone_S, abs=1e-5)


def recorded_gap(found, segment):
    """Largest |engine - learner| in the records, nat."""
    return max(
        abs(engine - learner)
        for record in found["records"]
        for turn in record["turns"]
        if turn["segment"] == segment and turn["learner_logprobs"] is not None
        for engine, learner in zip(turn["logprobs"], turn["learner_logprobs"], strict=True)
    )


@pytest.mark.parametrize(
    ("old_logprobs", "updates", "world"),
    [("engine", 1, 2), ("engine", 2, 1), ("recompute", 1, 1), ("recompute", 2, 2)],
)
def test_the_largest_gap_in_the_records_is_the_parity_of_the_step(world_of, world, updates, old_logprobs):
    found = world_of(world)("learned", updates_per_step=updates, loss={"old_logprobs": old_logprobs})
    for segment in ("sampling", "reasoning"):
        assert found["metrics"][f"parity/max/{segment}"] > 0.1  # the behaviour log-probs are made up
        assert recorded_gap(found, segment) == pytest.approx(found["metrics"][f"parity/max/{segment}"], abs=1.1e-5)


def test_log_probs_are_of_the_policy_that_sampled_not_of_a_later_step(world_of):
    """Two optimizer steps: rank 0 has two samples and rank 1 four; each learns the first half in the first step."""
    found = world_of(2)("learned", updates_per_step=2)
    known = [[logprobs_S is not None for logprobs_S in logprobs_G] for logprobs_G in found["logprobs_PG"]]
    assert known == [[True, True, False], [True, False, False], [False, False, False]]
    assert_seen_are_those_alone(found)
    turns = [turn for record in found["records"] for turn in record["turns"]]
    assert sum(turn["advantage"] is not None for turn in turns) > sum(
        turn["learner_logprobs"] is not None for turn in turns
    )


def test_a_profile_names_the_parts_of_an_update(world_of, tmp_path):
    names = world_of(1)("profiled", path=tmp_path / "learner_0.json.gz")
    parts = {f"learner/{part}" for part in ("prepare", "forward", "backward", "optimizer")}
    assert parts | {"aten::mm", "aten::embedding"} <= names


def test_the_optimizers_state_is_digested_every_so_many_steps_of_the_run(world_of):
    every = world_of(2)("digested", steps=2)
    assert len(set(every)) == 2 and all(len(digest) == 64 for digest in every)
    assert world_of(2)("digested", steps=2, digest_every=2) == ["", every[1]]
    assert world_of(2)("digested", steps=2, digest_every=0) == ["", ""]


@pytest.mark.parametrize("updates", [1, 2])
def test_recomputed_log_probs_make_the_first_ratio_exactly_one(world_of, updates):
    metrics = world_of(2)(
        "update",
        steps=1,
        updates_per_step=updates,
        stage=3,
        loss={"old_logprobs": "recompute"},
        optimizer={"lr": 1e-30},
    )["metrics"][0]
    assert metrics["policy/ratio_mean"] == 1.0
    assert metrics["policy/clip_fraction/sampling"] == metrics["policy/clip_fraction/reasoning"] == 0.0


def test_the_reference_is_where_the_run_started(world_of):
    first, second, _ = world_of(2)("update", steps=3, loss={"kl_beta": 0.5})["metrics"]
    assert first["loss/kl"] == 0.0
    assert second["loss/kl"] > 1e-7


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(world_of, stage, world):
    found = world_of(world)("poisoned", stage=stage)
    before, after_poison, after_clean = found["digests"]
    assert before == after_poison != after_clean
    assert [metrics["update/skipped_steps"] for metrics in found["metrics"]] == [1.0, 0.0]
    assert np.isfinite(found["metrics"][1]["grad/norm"])


def test_a_step_with_nothing_to_learn_from_is_not_taken(world_of):
    found = world_of(2)("nothing", optimizer={"weight_decay": 0.5})
    assert found["unchanged"]
    assert found["metrics"]["update/trajectories"] == 0.0


@pytest.mark.parametrize(
    ("stage", "dtype", "policy"),
    [
        *((0, "float32", QWEN3), (2, "bfloat16", QWEN3 + TIED), (3, "float32", QWEN2_5)),
        pytest.param(1, "float32", QWEN2_5 + TIED, marks=pytest.mark.soak),
        pytest.param(3, "bfloat16", QWEN3, marks=pytest.mark.soak),
    ],
)
def test_a_saved_run_goes_on_bit_for_bit(world_of, tmp_path, stage, dtype, policy):
    found = world_of(2)("resumed", folder=tmp_path, stage=stage, dtype=dtype, policy=policy)
    assert found["resumed"] == found["straight"]  # the weights, and the optimizer's state
    for fresh, loaded, straight in zip(found["fresh"], found["loaded"], found["straight"], strict=True):
        assert len({fresh, loaded, straight}) == 3
    assert found["steps"] == 1
    assert found["offloaded"] == found["loaded"]  # placement.share_gpus=turns
    away = tmp_path / "while offloaded"
    for rank in ("rank_0.safetensors", "rank_1.safetensors"):
        assert content(away / rank) == content(tmp_path / rank)


def content(path):
    """Bytes; of a safetensors file, metadata and tensors, for it writes its metadata in any order."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return metadata, {name: (str(t.dtype), tuple(t.shape), t.tolist()) for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("stage", "dtype", "policy"),
    [(0, "float32", QWEN2_5), (2, "bfloat16", QWEN3), (3, "float32", QWEN3 + TIED)],
)
def test_training_on_after_the_copy_does_not_change_what_is_written(world_of, tmp_path, stage, dtype, policy):
    """The rank's state and the policy are copied, not referred to: on the CPU that takes asking for."""
    written = world_of(2)("captured", folder=tmp_path, stage=stage, dtype=dtype, policy=policy)
    names = sorted(path.relative_to(tmp_path / "at_once").as_posix() for path in files_under(tmp_path / "at_once"))
    assert sorted(record.name for record in written) == names
    for record in written:
        assert record == file_record(tmp_path / "later", tmp_path / "later" / record.name)
        assert content(tmp_path / "at_once" / record.name) == content(tmp_path / "later" / record.name)


LAYOUTS = [(stage, world) for stage in (0, 1, 2, 3) for world in (1, 2)]


@pytest.fixture(scope="module")
def kept(world_of, tmp_path_factory):
    """`kept(stage, world)`: two steps, saved, and what became of the third; each layout once for all tests."""
    known = {}

    def get(stage, world, name="", **options):
        if (stage, world, name) not in known:
            folder = tmp_path_factory.mktemp("kept")
            known[stage, world, name] = folder, world_of(world)("kept", folder=folder, stage=stage, **options)
        return known[stage, world, name]

    return get


def assert_taken_over(found, kept):
    """Element for element what was saved, as DeepSpeed puts it together. The same weights give the very same loss; the
    step is that of the run that stayed, but for the order of sums over ranks and in the norm of the gradient."""
    assert found["steps"] == 2 and found["whole"].keys() == kept["whole"].keys()
    assert found["whole"]["steps"] == kept["whole"]["steps"] == [2.0]
    for of, tensor in kept["whole"].items():
        assert np.array_equal(found["whole"][of], tensor), of
    assert_goes_on(found, kept)


def assert_goes_on(found, kept):
    assert all(np.array_equal(found["weights"][name], weights) for name, weights in kept["weights"].items())
    assert found["then"]["loss"] == kept["loss"]
    assert found["then"]["moved"].keys() == kept["moved"].keys()
    scale = max(np.abs(weights).max() for weights in kept["moved"].values())
    for name, weights in kept["moved"].items():
        assert np.abs(found["then"]["moved"][name] - weights).max() < 1e-6 * scale, name


@pytest.mark.parametrize(
    ("stage", "world"),
    [pytest.param(*to, marks=() if to in ((0, 1), (1, 2), (3, 2)) else pytest.mark.soak) for to in LAYOUTS],
)
def test_every_layout_goes_on_from_every_other(world_of, kept, stage, world):
    """Of the 64 pairs of ZeRO 0-3 on one rank and two those towards three layouts, in `make soak` towards the others,
    too. In its own layout the step is the very same."""
    saved = {layout: kept(*layout) for layout in LAYOUTS}
    folders = {layout: folder for layout, (folder, _) in saved.items()}

    found = world_of(world)("taken_over", folders=folders, stage=stage)

    for layout, (_, before) in saved.items():
        assert_taken_over(found[layout], before)
    own, (_, before) = found[stage, world], saved[stage, world]
    assert all(np.array_equal(own["then"]["moved"][name], weights) for name, weights in before["moved"].items())


@pytest.mark.soak  # how parts are put together, whatever their number: tests/rl/learner/test_partition.py
def test_three_ranks_go_on_from_two_and_one_and_back(world_of, kept):
    """Uneven parts with padding in them, and a rank that has no samples."""
    saved = {layout: kept(*layout) for layout in ((1, 2), (3, 1))}
    for stage in (2, 3):
        found = world_of(3)("taken_over", folders={of: folder for of, (folder, _) in saved.items()}, stage=stage)
        for layout, (_, before) in saved.items():
            assert_taken_over(found[layout], before)
    folder, before = kept(3, 3)
    (found,) = world_of(2)("taken_over", folders={"": folder}, stage=1).values()
    assert_taken_over(found, before)


def test_bfloat16_goes_on_in_another_layout_from_the_float32_masters(world_of, kept):
    """The weights are the masters, rounded."""
    folder, before = kept(1, 2, "bfloat16", dtype="bfloat16")
    for stage, world in ((3, 1), (2, 1), (3, 2)):
        (found,) = world_of(world)("taken_over", folders={"": folder}, stage=stage, dtype="bfloat16").values()
        assert found["whole"].keys() == before["whole"].keys()
        assert all(np.array_equal(found["whole"][of], tensor) for of, tensor in before["whole"].items())
        for name, weights in found["weights"].items():
            assert np.array_equal(weights, rounded_to_bfloat16(before["whole"][name, "master"])), name
        assert found["then"]["loss"] == before["loss"]


def rounded_to_bfloat16(weights):
    """To nearest, ties to even: the upper half of a float32's bits."""
    bits = weights.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_a_frozen_vision_tower_goes_on_in_another_layout(world_of, kept):
    folder, before = kept(2, 2, "frozen", freeze_vision=True)
    for stage, world in ((3, 1), (0, 2)):
        (found,) = world_of(world)("taken_over", folders={"": folder}, stage=stage, freeze_vision=True).values()
        assert_taken_over(found, before)


@pytest.mark.soak
def test_deepspeeds_own_settings_change_the_layout_too(world_of, kept, tmp_path):
    """Same stage, same ranks, but parameters in another order, in many small groups, none of them kept whole.

    DeepSpeed's own view of the masters is wrong where it changed the order: weights and the next step are judged.
    """
    folders = {}
    for stage, changes in ((2, {"round_robin_gradients": True}), (3, {"sub_group_size": 5000})):
        settings = tmp_path / f"{stage}.json"
        settings.write_text(json.dumps({"zero_optimization": changes | {"stage3_param_persistence_threshold": 0}}))
        folders[stage], _ = kept(stage, 2, "settings", deepspeed_config=str(settings))
    plain, ordered = (read_rank_files(folder)[0].fragments for folder in (kept(2, 2)[0], folders[2]))
    assert {f.parameter for f in plain} != {f.parameter for f in ordered}
    assert len(read_rank_files(folders[3])[0].kept) > 10  # groups
    for stage in (2, 3):
        found = world_of(2)("taken_over", folders=folders, stage=stage)
        for source in (2, 3):
            assert_goes_on(found[source], kept(source, 2, "settings")[1])


def test_a_state_from_before_the_first_step_has_no_moments_to_take_over(world_of, kept):
    folder, before = kept(0, 2, "fresh", steps=0)
    (found,) = world_of(1)("taken_over", folders={"": folder}, stage=1).values()
    assert found["whole"]["steps"] == before["whole"]["steps"] == []
    assert found["whole"].keys() == before["whole"].keys()
    assert found["then"]["loss"] == before["loss"]


def test_training_draws_nothing_so_another_layout_loses_nothing_with_its_random_states(world_of, kept):
    """Ranks of a new layout are seeded from what rank 0's state was and their own number: again the same each time."""
    folder, before = kept(1, 2)
    assert not before["drew"]
    once, again = (world_of(1)("taken_over", folders={"": folder}, stage=3)[""]["seeded"] for _ in range(2))
    own = world_of(2)("taken_over", folders={"": folder}, stage=1)[""]["seeded"]
    assert np.array_equal(once, again)
    assert not np.array_equal(once, own)
    assert np.array_equal(own, load_file(folder / "rank_0.safetensors")["rng.cpu"])


def test_a_state_older_than_its_description_goes_on_in_its_own_layout_only(world_of, kept, tmp_path):
    folder, before = kept(1, 2)
    for path in folder.iterdir():
        with safe_open(path, framework="numpy") as file:
            said = {key: value for key, value in file.metadata().items() if key in ("layout", "steps")}
        save_file(load_file(path), tmp_path / path.name, metadata=said)
    (found,) = world_of(2)("taken_over", folders={"": tmp_path}, stage=1).values()
    assert all(np.array_equal(found["whole"][of], tensor) for of, tensor in before["whole"].items())
    assert "learner.zero_stage=1 (now 2)" in world_of(2)("refused", folder=tmp_path, stage=2)


def test_what_cannot_be_taken_over_is_refused_with_the_difference(world_of, kept, tmp_path):
    folder, _ = kept(1, 1)
    found = world_of(2)("refused", folder=folder, stage=3, freeze_vision=True)
    assert found.startswith("LearnerStateError: ") and "rank_0.safetensors: " in found
    assert "are not trained here (" in found and "0 trained here are not in it (none)" in found
    assert "learner.freeze_vision" in found
    (tmp_path / "rank_0.safetensors").write_bytes(b"not a state")
    assert "rank_0.safetensors: not readable" in world_of(1)("refused", folder=tmp_path, stage=1)


@pytest.mark.parametrize(("stage", "policy"), [(1, QWEN2_5 + TIED), (3, QWEN2_5), (1, QWEN3), (3, QWEN3 + TIED)])
def test_the_exported_policy_is_the_policy_in_training(world_of, tmp_path, stage, policy):
    found = world_of(2)("exported", folder=tmp_path / "policy", stage=stage, policy=policy)
    assert furthest(found["inside"], found["outside"]) < 1e-5


def test_supervision_lowers_the_loss_of_what_it_shows(world_of):
    found = world_of(1)("supervised", steps=25, policy=QWEN3)
    losses = found["steps"]
    assert losses[0] == pytest.approx(np.log(600), abs=0.3)  # knows nothing yet
    assert losses[-1] < 0.5 * losses[0]
    nll, tokens = (sum(column) for column in zip(*found["before"], strict=True))  # what an evaluation reads
    assert nll / tokens == pytest.approx(losses[0], abs=1e-5)


LORA = {"rank": 4, "alpha": 16.0}
LORA_EVERYWHERE = {
    **LORA,
    "targets": ["q_proj", "down_proj", "visual.qkv", "visual.proj"],
    "full": ["merger", "lm_head"],
}


@pytest.mark.parametrize(
    ("stage", "world", "policy", "lora"),
    [
        (0, 2, QWEN2_5, LORA),
        (1, 1, QWEN3, LORA_EVERYWHERE),
        (2, 2, QWEN2_5, LORA_EVERYWHERE),
        (3, 2, QWEN3 + TIED, LORA),
    ],
)
def test_low_rank_updates_learn_what_peft_learns_in_plain_pytorch(world_of, stage, world, policy, lora):
    plain = world_of(1)("plain", lora=lora, policy=policy)
    learned = world_of(world)("update", stage=stage, lora=lora, policy=policy)

    assert deviation(learned["gradients"], plain["gradients"]) < 1e-5
    assert furthest(learned["logprobs"], plain["logprobs"]) < 1e-4
    projections = {name.rpartition(".")[0].rpartition(".")[2] for name in learned["moved"]}
    assert projections >= ({"q_proj", "down_proj", "qkv"} if lora is LORA_EVERYWHERE else {"q_proj", "o_proj"})
    assert not any("lora" in name or "base_layer" in name for name in learned["moved"])
    assert not any("embed_tokens" in name or "norm" in name for name in learned["moved"] if "merger" not in name)


@pytest.mark.parametrize(("stage", "policy"), [(1, QWEN2_5), (3, QWEN3)])
def test_what_is_exported_has_its_updates_in_its_weights(world_of, tmp_path, stage, policy):
    found = world_of(2)("exported", folder=tmp_path, stage=stage, policy=policy, lora=LORA_EVERYWHERE)
    assert furthest(found["inside"], found["outside"]) < 2e-5


@pytest.mark.parametrize("stage", [1, 3])
def test_low_rank_updates_resume_bit_for_bit(world_of, tmp_path, stage):
    found = world_of(2)("resumed", folder=tmp_path, stage=stage, lora=LORA)
    assert found["resumed"] == found["straight"] != found["fresh"]


@pytest.mark.parametrize(
    ("stage", "lora"),
    [
        pytest.param(1, LORA, id="the policy without its updates"),
        pytest.param(3, LORA, id="the same, cut up"),
        pytest.param(3, LORA_EVERYWHERE, id="a policy beside it"),
    ],
)
def test_the_reference_of_low_rank_updates_is_the_policy_before_them(world_of, stage, lora):
    first, second = world_of(2)("update", stage=stage, loss={"kl_beta": 0.1}, steps=2, lora=lora)["metrics"]
    assert first["loss/kl"] == pytest.approx(0, abs=1e-7)
    assert second["loss/kl"] > 1e-6


def test_products_that_a_policy_does_not_have_are_named(world_of):
    lora = {**LORA, "targets": ["visual.linear_fc1"]}  # of the other family
    with pytest.raises(
        AssertionError, match=r"policy\.lora\.targets: this policy has no visual\.linear_fc1; .*visual\.qkv"
    ):
        world_of(1)("update", lora=lora)
