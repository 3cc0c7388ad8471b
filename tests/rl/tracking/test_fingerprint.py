"""Fingerprints: equal for equal steps, and a single bit anywhere names the stage it changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.batch import learned_credit
from rl.learner.digest import CHUNK_WORDS, tensors_digest, value_sums
from rl.tracking.fingerprint import (
    STAGES,
    fingerprint,
    first_difference,
    samples_digest,
    step_fingerprints,
    supervised_fingerprints,
)
from rl.tracking.metrics import describe
from rl.trajectory import RewardFailure, SegmentRewards, TrainingSample
from tests.remote_groups import remote_scored

WEIGHTS = {"a.weight": "00", "b.weight": "ff"}


@pytest.fixture
def scored(trajectory, scored_group, block):
    looked, answered = trajectory(sampling=2, reasoning=1, frames=block("v1")), trajectory(sampling=0, reasoning=3)
    return [scored_group([looked, answered], [(1.0, 0.5), (0.0, 0.25)], coarse_frames=block("v0"))]


def prints_of(scored, optimizer="o", weights=WEIGHTS, credit=learned_credit):
    scored = remote_scored(scored)
    return step_fingerprints(scored, [credit(group) for group in scored], optimizer=optimizer, weights=weights)


def edited(scored, sibling, turn=None, completion=None, **changes):
    """The step with something of one sibling's turn replaced."""
    group = scored[0].group
    trajectories = list(group.trajectories_G)
    turns = list(trajectories[sibling].turns)
    if completion:
        changes = {"completion": replace(turns[turn].completion, **completion)}
    turns[turn] = replace(turns[turn], **changes)
    trajectories[sibling] = replace(trajectories[sibling], turns=tuple(turns))
    return [replace(scored[0], group=replace(group, trajectories_G=tuple(trajectories)))]


def scored_as(scored, *rewards):
    return [replace(scored[0], rewards_G=rewards)]


def test_a_fingerprint_is_sixteen_digits_behind_a_mark_that_makes_it_no_number(scored):
    prints = prints_of(scored)
    assert list(prints) == [*(f"state/{stage}" for stage in STAGES), "state/hash"]
    for name, value in prints.items():
        assert value.startswith("sha256:") and len(value) == 23 and int(value[7:], 16) >= 0
        assert describe(name)[0] == "sha256"
    assert prints == prints_of(scored)
    assert len(set(prints.values())) == len(prints)


NEXT = float(np.nextafter(0.5, 1))  # the very next number


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("prompts", lambda scored, block: edited(scored, 0, 1, context_token_ids=(13, 99))),
        ("prompts", lambda scored, block: edited(scored, 0, 1, frames=block("another"))),
        ("tokens", lambda scored, block: edited(scored, 1, 0, completion={"token_ids": (11, 12, 99)})),
        ("logprobs", lambda scored, block: edited(scored, 1, 0, completion={"logprobs": (-0.1, -0.2, -NEXT)})),
        ("rewards", lambda scored, block: scored_as(scored, SegmentRewards(1.0, NEXT, {}), scored[0].rewards_G[1])),
        (
            "rewards",
            lambda scored, block: scored_as(scored, SegmentRewards(1.0, 0.5, {"iou": 1}), scored[0].rewards_G[1]),
        ),
        (
            "rewards",
            lambda scored, block: scored_as(scored, scored[0].rewards_G[0], RewardFailure("iou", "timeout", "")),
        ),
    ],
)
def test_the_stage_that_changed_is_the_first_that_differs(scored, block, stage, change):
    before, after = prints_of(scored), prints_of(change(scored, block))
    assert first_difference(before, after) == stage
    assert before["state/hash"] != after["state/hash"]


def test_credit_optimizer_and_weights_count_by_themselves(scored):
    before = prints_of(scored)
    uncredited = prints_of(scored, credit=lambda group: learned_credit(group)[::-1])
    assert first_difference(before, uncredited) == "advantages"
    assert first_difference(before, prints_of(scored, optimizer="p")) == "optimizer"
    assert first_difference(before, prints_of(scored, weights=WEIGHTS | {"b.weight": "fe"})) == "weights"
    assert prints_of(scored, weights=dict(reversed(WEIGHTS.items()))) == before  # parameters have no order


def test_what_a_failed_reward_said_does_not_count_but_that_it_failed_and_why(scored):
    slow = scored_as(scored, scored[0].rewards_G[0], RewardFailure("iou", "timeout", "after 3.01 s"))
    slower = scored_as(scored, scored[0].rewards_G[0], RewardFailure("iou", "timeout", "after 3.02 s"))
    raised = scored_as(scored, scored[0].rewards_G[0], RewardFailure("iou", "raised", "after 3.02 s"))
    assert prints_of(slow) == prints_of(slower)
    assert first_difference(prints_of(slow), prints_of(raised)) == "rewards"


def test_siblings_and_groups_are_in_order(scored):
    other = [replace(scored[0], group=replace(scored[0].group, task=replace(scored[0].group.task, task_id="u")))]
    assert prints_of(scored + other) != prints_of(other + scored)


def test_steps_that_lack_fingerprints_are_not_equal():
    assert first_difference({}, {}) == "prompts"


def test_of_the_optimizer_both_steps_may_lack_the_fingerprint_but_not_one_of_them(scored):
    whole, without = prints_of(scored), prints_of(scored, optimizer="")
    assert set(whole) - set(without) == {"state/optimizer"}
    assert whole["state/hash"] != without["state/hash"]
    assert first_difference(without, prints_of(scored, optimizer="")) is None
    assert first_difference(without, whole) == first_difference(whole, without) == "optimizer"
    for stage in set(STAGES) - {"optimizer"}:
        assert first_difference(*[{k: v for k, v in whole.items() if k != f"state/{stage}"}] * 2) == stage


def supervised(samples="s", loss=1.0, norm=2.0, optimizer="o"):
    return supervised_fingerprints(samples, {"loss/nll": loss, "grad/norm": norm}, optimizer=optimizer)


@pytest.mark.parametrize(
    ("changed", "stage"),
    [
        ({}, None),
        ({"samples": "t"}, "samples"),
        ({"loss": np.nextafter(1.0, 2)}, "loss"),
        ({"norm": 3.0}, "loss"),
        ({"optimizer": "p"}, "optimizer"),
        ({"optimizer": ""}, "optimizer"),
    ],
)
def test_a_supervised_step_has_fingerprints_of_its_own_stages(changed, stage):
    assert first_difference(supervised(), supervised(**changed)) == stage
    assert (supervised()["state/hash"] == supervised(**changed)["state/hash"]) == (stage is None)
    assert first_difference(supervised(), {}) == first_difference({}, supervised()) == "samples"


def test_of_samples_their_tokens_what_they_are_learned_with_their_frames_and_their_order_count(block):
    sample = TrainingSample((3, 4), (0, 2), (0, 0), (0.0, 0.0), (0.0, 1.0), (False, True), (0, 0), (block("v1"),))
    others = [
        replace(sample, token_ids=(3, 5)),
        replace(sample, advantages=(0.0, 0.5)),
        replace(sample, loss_mask=(True, True)),
        replace(sample, videos=(block("v2"),)),
    ]
    digests = {samples_digest(samples) for samples in ([sample], *([other] for other in others), [])}
    assert len(digests) == 6
    assert samples_digest([sample, others[0]]) != samples_digest([others[0], sample])


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_only_equal_sequences_of_parts_have_equal_fingerprints(ours, theirs):
    assert (fingerprint(ours) == fingerprint(theirs)) == (ours == theirs)


def plain_sums(values: np.ndarray) -> list[int]:
    """The definition, in whole numbers of Python."""
    words = values.view(np.int32).tolist()
    sums = sum(words), sum(place * word for place, word in enumerate(words, start=1))
    return [(total + 2**63) % 2**64 - 2**63 for total in sums]


@pytest.mark.parametrize("size", [0, 1, 5, CHUNK_WORDS - 1, CHUNK_WORDS, 2 * CHUNK_WORDS + 3])
def test_value_sums_are_the_sum_of_words_and_of_words_times_places(size):
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    assert value_sums(torch.from_numpy(values)).tolist() == plain_sums(values)


@given(st.integers(0, 40), st.integers(1, 50), st.sampled_from([torch.float32, torch.bfloat16, torch.int8]))
def test_however_many_words_are_summed_at_a_time_the_sums_are_the_same(size, chunk, dtype):
    tensor = torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32).to(dtype)
    assert value_sums(tensor, chunk_words=chunk).tolist() == value_sums(tensor).tolist()


def test_value_sums_by_hand():
    # 1.0 is 0x3f800000 = 1065353216, -0.0 is the smallest integer, -2^31
    one, minus_zero = 1065353216, -(2**31)
    assert value_sums(torch.tensor([[1.0, -0.0], [0.0, 1.0]])).tolist() == [
        2 * one + minus_zero,
        5 * one + 2 * minus_zero,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_one_bit_or_two_values_that_change_places_change_the_sums(dtype):
    values = torch.tensor([1, 0, 1, 1]).to(dtype)
    assert value_sums(values).tolist() != value_sums(values.roll(1)).tolist()
    assert value_sums(values).tolist() == value_sums(values.reshape(2, 2).clone()).tolist()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20), st.data())
def test_two_signs_that_flip_together_are_seen(values, data):
    tensor = torch.tensor(values, dtype=torch.float32)
    first, second = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=2, max_size=2, unique=True))
    flipped = tensor.clone()
    flipped[[first, second]] *= -1
    assert tensors_digest({"w": tensor}) != tensors_digest({"w": flipped})


def test_the_sums_of_all_tensors_come_in_one_transfer(monkeypatch):
    named = {f"w{index}": torch.full((3,), float(index)) for index in range(5)}
    fetched, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: fetched.append(tuple(self.shape)) or tolist(self))
    tensors_digest(named)
    assert fetched == [(5, 2)]


def test_a_digest_of_tensors_knows_names_types_and_shapes():
    zeros = torch.zeros(4)
    digests = {
        tensors_digest({"w": zeros}),
        tensors_digest({"v": zeros}),
        tensors_digest({"w": zeros.view(2, 2)}),
        tensors_digest({"w": zeros.bfloat16()}),
        tensors_digest({"w": zeros, "v": zeros}),
        tensors_digest({}),
    }
    assert len(digests) == 6
    assert tensors_digest({"a": zeros, "b": zeros + 1}) == tensors_digest({"b": zeros + 1, "a": zeros})
