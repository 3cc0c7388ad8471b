"""From scored groups to tensors: credit lands on the right tokens, groups stay whole, splitting changes nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.advantages import NOT_LEARNED
from rl.algorithm.batch import (
    assign_ranks,
    build_training_samples,
    collate,
    credit_metrics,
    gather_ranks,
    learned_credit,
    loss_totals,
    micro_batches,
    num_micro_batches,
    sampled_values,
)
from rl.algorithm.loss import LossTotals, policy_loss, token_weights
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import RewardFailure, StopReason, trajectory_tokens

FAILED = RewardFailure("mine", "raised", "KeyError")
PAD = 99


class CountingProcessor:
    """Positions count up on each axis; packing is counted."""

    ids = SimpleNamespace(pad=PAD)

    def __init__(self):
        self.packed = []

    def pack(self, frames):
        self.packed.append(frames.digest)
        return SimpleNamespace(digest=frames.digest)

    def positions(self, token_ids, videos):
        return np.stack([np.arange(len(token_ids)) + 100 * axis for axis in range(3)])


def test_right_retrieval_is_credited_even_when_the_answer_is_wrong(trajectory, scored_group):
    looked_well_answered_badly = trajectory(sampling=2, reasoning=1)  # token counts per segment
    looked_badly_answered_well = trajectory(sampling=1, reasoning=2)
    scored = scored_group([looked_well_answered_badly, looked_badly_answered_well], [(1.0, 0.0), (0.0, 1.0)])

    first, second = build_training_samples(scored)

    #                                         ctx   sampling     ctx   reasoning
    assert first.advantages == pytest.approx([0.0, +1.0, +1.0, 0.0, -1.0], abs=1e-3)
    assert second.advantages == pytest.approx([0.0, -1.0, 0.0, +1.0, +1.0], abs=1e-3)
    assert first.loss_mask == (False, True, True, False, True)


def test_what_cannot_be_learned_from_is_left_out(trajectory, scored_group):
    truncated, unreadable = trajectory(1, 2, stop=StopReason.TRUNCATED), replace(trajectory(), turns=())
    siblings = [trajectory(1, 1), trajectory(2, 1), trajectory(3, 1), truncated, unreadable]
    scored = scored_group(siblings, [(1.0, 1.0), (0.0, 1.0), FAILED, (0.5, 0.0), FAILED])

    kept = build_training_samples(scored)
    with_truncated = build_training_samples(scored, mask_truncated=False)

    assert [sample and len(sample.token_ids) for sample in kept] == [4, 5, None, None, None]
    assert [sample is not None for sample in with_truncated] == [True, True, False, True, False]
    assert kept[:2] == with_truncated[:2]  # a truncated sibling is in the baseline either way


def test_a_group_of_one_is_refused(trajectory, scored_group):
    with pytest.raises(ValueError, match="at least 2 siblings"):
        build_training_samples(scored_group([trajectory()], [(1.0, 1.0)]))


def test_samples_follow_their_siblings(trajectory, scored_group):
    siblings, rewards = [trajectory(1, 2), trajectory(0, 3), trajectory(2, 2)], [(0.9, 0.1), (0.0, 1.0), (0.2, 0.4)]
    order = [2, 0, 1]

    straight = build_training_samples(scored_group(siblings, rewards))
    permuted = build_training_samples(scored_group([siblings[i] for i in order], [rewards[i] for i in order]))

    assert permuted == tuple(straight[i] for i in order)


def test_credit_is_what_the_tokens_of_the_samples_carry_and_none_where_there_is_no_sample(trajectory, scored_group):
    truncated = trajectory(1, 2, stop=StopReason.TRUNCATED)
    scored = scored_group([trajectory(1, 1), truncated, trajectory(2, 1)], [(1.0, 0.0), (0.5, 1.0), FAILED])

    credit_G, samples_G = learned_credit(scored), build_training_samples(scored)

    assert samples_G[0].advantages == (0.0, credit_G[0].sampling, 0.0, credit_G[0].reasoning)
    assert credit_G[1:] == (NOT_LEARNED, NOT_LEARNED) and samples_G[1:] == (None, None)
    assert learned_credit(scored, mask_truncated=False)[1].reasoning == pytest.approx(1.0, abs=1e-3)


def test_credit_metrics(trajectory, scored_group):
    rules = AdvantageConfig(scale="none")
    looks_differ = scored_group([trajectory(1, 3), trajectory(3, 1)], [(1.0, 0.5), (0.0, 0.5)])
    nothing_differs = scored_group([trajectory(1, 1), trajectory(1, 1)], [(0.5, 0.5), (0.5, 0.5)])

    metrics = credit_metrics([looks_differ, nothing_differs], rules)

    assert metrics == {
        "group/zero_variance_sampling": 0.5,
        "group/zero_variance_reasoning": 1.0,
        "group/zero_variance_both": 0.5,
        "advantage/sampling": pytest.approx(4 * 0.5 / 6),
        "advantage/reasoning": 0.0,
    }


def test_totals_count_what_is_learned_from(trajectory, scored_group):
    samples = build_training_samples(scored_group([trajectory(2, 1), trajectory(0, 2)], [(1.0, 0.0), (0.0, 1.0)]))
    masked = replace(samples[0], loss_mask=(False,) * len(samples[0].token_ids))

    assert loss_totals([*samples, masked]) == LossTotals(num_sequences=2, num_tokens=5)
    assert loss_totals(samples[:1]) + loss_totals(samples[1:]) == loss_totals(samples)


def groups_of_lengths(trajectory, scored_group, lengths):
    return [scored_group([trajectory(0, n), trajectory(0, n)], [(0.0, 1.0), (0.0, 0.0)]) for n in lengths]


@pytest.mark.parametrize(
    ("lengths", "tokens"),  # of a group: 2 * (length + 1)
    [([9, 1, 1, 9], [24, 24]), ([9, 9, 1, 1], [24, 24]), ([5, 4, 3, 2], [18, 18])],
)
def test_ranks_get_equal_shares_of_tokens(trajectory, scored_group, lengths, tokens):
    groups = groups_of_lengths(trajectory, scored_group, lengths)

    ranks = assign_ranks(groups, 2)

    trajectories_of = [[t for i in rank for t in groups[i].group.trajectories_G] for rank in ranks]
    assert [sum(map(len, map(trajectory_tokens, trajectories))) for trajectories in trajectories_of] == tokens


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 4))
def test_every_group_goes_whole_to_exactly_one_rank(trajectory, scored_group, lengths, world_size):
    groups = groups_of_lengths(trajectory, scored_group, lengths)
    ranks = assign_ranks(groups, world_size)

    assert len(ranks) == world_size
    assert sorted(index for rank in ranks for index in rank) == list(range(len(groups)))
    sizes = [len(rank) for rank in ranks]
    assert max(sizes) <= -(-len(lengths) // world_size)
    assert assign_ranks(groups, world_size) == ranks
    assert gather_ranks(ranks, [[groups[i] for i in rank] for rank in ranks]) == tuple(groups)


def test_micro_batches_keep_order_and_fill_up_with_empty_ones(trajectory, scored_group):
    samples = build_training_samples(
        scored_group([trajectory(0, n) for n in (1, 2, 3)], [(0.0, 1.0), (0.0, 0.0), (0.0, 0.5)])
    )

    assert [len(batch) for batch in micro_batches(samples, 2)] == [2, 1]
    assert [len(batch) for batch in micro_batches(samples, 2, count=3)] == [2, 1, 0]
    assert [sample for batch in micro_batches(samples, 2) for sample in batch] == list(samples)
    assert num_micro_batches(0, 2) == 0
    with pytest.raises(ValueError, match="3 samples need 2 micro-batches of 2, not 1"):
        micro_batches(samples, 2, count=1)


def test_collate_pads_to_the_right(trajectory, scored_group):
    samples = build_training_samples(
        scored_group([trajectory(1, 1, version=4), trajectory(0, 1, version=5)], [(1.0, 0.0), (0.0, 1.0)]),
        AdvantageConfig(scale="none"),
    )

    batch = collate(samples, CountingProcessor())

    assert batch.input_ids_BT.tolist() == [[10, 11, 12, 13], [10, 11, PAD, PAD]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.segment_ids_BT.tolist() == [[0, 1, 0, 2], [0, 2, 0, 0]]
    assert batch.loss_mask_BT.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert batch.advantages_BT.tolist() == [[0, 0.5, 0, -0.5], [0, 0, 0, 0]]  # never called: -0.5 + 0.5
    assert torch.allclose(batch.behavior_logprobs_BT, torch.tensor([[0, -0.1, 0, -0.1], [0, -0.1, 0, 0]]))
    assert batch.policy_versions_BT.tolist() == [[-1, 4, -1, 4], [-1, 5, -1, -1]]
    assert batch.position_ids_3BT.shape == (3, 2, 4)
    assert batch.position_ids_3BT[2].tolist() == [[200, 201, 202, 203], [200, 201, 0, 0]]


def test_values_of_sampled_tokens_leave_context_and_padding_out_and_have_none_where_nothing_is_learned(
    trajectory, scored_group
):
    scored = scored_group([trajectory(2, 1), trajectory(1, 1)], [(None, 0.0), (None, 1.0)])
    samples = build_training_samples(scored, AdvantageConfig(unannotated="mask"))
    batch = collate(samples, CountingProcessor())  # rows: C S S C R and C S C R, padded

    first, second = sampled_values(batch, torch.arange(10.0).view(2, 5))

    assert first.dtype == second.dtype == np.float32
    assert first[2] == 4.0 and np.isnan(first[:2]).all() and len(first) == 3
    assert second[1] == 8.0 and np.isnan(second[0]) and len(second) == 2


def test_a_shared_block_is_packed_once_and_stands_in_every_row(trajectory, scored_group, block):
    siblings = [trajectory(1, 1, frames=block("window")), trajectory(1, 1), trajectory(0, 2)]
    samples = build_training_samples(
        scored_group(siblings, [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], coarse_frames=block("v0"))
    )
    processor = CountingProcessor()

    batch = collate(samples, processor)

    assert processor.packed == ["v0", "window"]
    assert [video.digest for video in batch.videos] == ["v0", "window", "v0", "v0"]
    assert batch.videos[0] is batch.videos[2]


def test_an_empty_micro_batch_is_a_row_of_padding_without_a_gradient():
    batch = collate((), CountingProcessor())

    assert batch.input_ids_BT.tolist() == [[PAD, PAD]]
    assert not batch.loss_mask_BT.any()
    assert batch.videos == ()


# A bigram policy: logits of the next token are a table's row. Enough to take real gradients through the whole path.
VOCABULARY = 100


def bigram_logprobs(table, batch):
    logits = torch.log_softmax(table[batch.input_ids_BT[:, :-1]], dim=-1)
    chosen = logits.gather(-1, batch.input_ids_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(chosen, (1, 0))


def gradient(table, micro, totals, **options):
    """Sum of the gradients of micro-batches."""
    normaliser = options.pop("normaliser", "sequence")
    table = table.clone().requires_grad_()
    for samples in micro:
        batch = collate(samples, CountingProcessor())
        weights = token_weights(batch.segment_ids_BT, batch.loss_mask_BT, totals, normaliser=normaliser)
        old = bigram_logprobs(0.9 * table.detach(), batch)  # ratios around 1, some of them clipped
        columns = (old, batch.advantages_BT, weights, batch.loss_mask_BT)
        policy_loss(bigram_logprobs(table, batch), *columns, **options).loss.backward()
    return table.grad


@pytest.fixture
def table():
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def two_groups(trajectory, scored_group):
    return [
        scored_group([trajectory(2, 5), trajectory(1, 1), trajectory(0, 7)], [(1.0, 0.0), (0.3, 1.0), (0.0, 0.5)]),
        scored_group([trajectory((1, 2), 3), trajectory(4, 2), trajectory(1, 1)], [(0.2, 1.0), (0.9, 0.0), FAILED]),
    ]


def learned_from(groups):
    return [sample for group in groups for sample in build_training_samples(group) if sample is not None]


@pytest.mark.parametrize("ratio", ["token", "sequence", "cispo"])
@pytest.mark.parametrize("normaliser", ["sequence", "token", "segment", "constant"])
def test_micro_batches_and_ranks_add_up_to_the_whole_batch(two_groups, table, normaliser, ratio):
    samples = learned_from(two_groups)
    totals = loss_totals(samples)
    whole = gradient(table, [samples], totals, normaliser=normaliser, ratio=ratio)

    ranks = [learned_from([two_groups[i] for i in mine]) for mine in assign_ranks(two_groups, 2)]
    assert loss_totals(ranks[0]) + loss_totals(ranks[1]) == totals
    assert whole.abs().max() > 1e-3
    for size in (1, 2, 3):
        count = max(num_micro_batches(len(rank), size) for rank in ranks)
        parts = [batch for rank in ranks for batch in micro_batches(rank, size, count)]
        split = gradient(table, parts, totals, normaliser=normaliser, ratio=ratio)
        assert torch.allclose(split, whole, atol=1e-6, rtol=0)


def test_equal_rewards_leave_the_policy_alone(trajectory, scored_group, table):
    scored = scored_group([trajectory(1, 2), trajectory(0, 3)], [(0.7, 0.3), (0.7, 0.3)])
    samples = build_training_samples(scored)

    assert not gradient(table, [samples], loss_totals(samples)).any()


def test_injected_tokens_are_never_trained_on_whatever_their_ids(trajectory, scored_group, table):
    def with_injected(token_id):
        looked = trajectory(1, 2)
        look, last = looked.turns
        return replace(looked, turns=(look, replace(last, context_token_ids=(token_id,))))

    for injected in range(20, 60):
        scored = scored_group([with_injected(injected), trajectory(0, 3)], [(1.0, 0.0), (0.0, 1.0)])
        samples = build_training_samples(scored)
        batch = collate(samples[:1], CountingProcessor())
        logits = table[batch.input_ids_BT[:, :-1]].clone().requires_grad_()
        logp = torch.log_softmax(logits, -1).gather(-1, batch.input_ids_BT[:, 1:, None])[..., 0]
        logp = torch.nn.functional.pad(logp, (1, 0))
        weights = token_weights(batch.segment_ids_BT, batch.loss_mask_BT, loss_totals(samples), normaliser="sequence")
        policy_loss(logp, logp.detach(), batch.advantages_BT, weights, batch.loss_mask_BT).loss.backward()

        predicts_injected = 1  # tokens: context, sampled call, INJECTED, two of the answer
        assert not logits.grad[0, predicts_injected].any()  # exactly
        assert logits.grad[0, 0].any() and logits.grad[0, 2].any()


@pytest.mark.parametrize(("rewards", "moved"), [([(1.0, 0.5), (0.0, 0.5)], 1), ([(0.5, 1.0), (0.5, 0.0)], 2)])
def test_a_reward_moves_only_its_own_segment(trajectory, scored_group, rewards, moved):
    samples = build_training_samples(scored_group([trajectory(2, 3), trajectory(1, 2)], rewards))
    batch = collate(samples, CountingProcessor())
    logp = batch.behavior_logprobs_BT.clone().requires_grad_()
    weights = token_weights(batch.segment_ids_BT, batch.loss_mask_BT, loss_totals(samples), normaliser="sequence")

    columns = (batch.behavior_logprobs_BT, batch.advantages_BT, weights, batch.loss_mask_BT)
    policy_loss(logp, *columns).loss.backward()

    assert torch.equal(logp.grad != 0, batch.segment_ids_BT == moved)
