"""Samples to tensors: packed rows, values at their tokens; splitting and sharing change no gradient."""

from dataclasses import fields, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rl.algorithm.batch import assign_ranks, build_training_samples, loss_totals
from rl.algorithm.learner_batch import collate, on_device, sampled_values
from rl.algorithm.loss import policy_loss, token_weights
from rl.algorithm.packing import Limits, alone, micro_batches, with_common_openings
from rl.config.algorithm import AdvantageConfig
from rl.policy.geometry import PackedVideo
from rl.policy.packing import Tree
from rl.trajectory import RewardFailure

GPU = torch.device("cuda", 0)
FAILED = RewardFailure("mine", "raised", "KeyError")
PAD, OPENING = 99, 10  # the id of the first context's only token: it stands for the placeholder of the coarse frames


class CountingProcessor:
    """Positions count up on each axis; packing is counted."""

    ids = SimpleNamespace(pad=PAD, video_pad=OPENING)

    def __init__(self):
        self.packed = []

    def pack(self, frames):
        self.packed.append(frames.digest)
        return SimpleNamespace(digest=frames.digest)

    def positions(self, token_ids, videos):
        return np.stack([np.arange(len(token_ids)) + 100 * axis for axis in range(3)])

    def visual_tokens(self, frames):
        return 1


def shared(samples):
    return with_common_openings(samples, CountingProcessor())


def test_a_row_of_values_for_every_sample_padded_to_the_right(trajectory, scored_group):
    samples = build_training_samples(
        scored_group([trajectory(1, 1, version=4), trajectory(0, 1, version=5)], [(1.0, 0.0), (0.0, 1.0)]),
        AdvantageConfig(scale="none"),
    )

    batch = collate(samples, CountingProcessor())

    assert batch.token_ids_R.tolist() == [10, 11, 12, 13, 10, 11]  # one sample after the other
    assert batch.places_BT.tolist() == [[0, 1, 2, 3], [4, 5, -1, -1]]
    assert batch.token_ids_BT[0].tolist() == [10, 11, 12, 13]
    assert batch.segment_ids_BT.tolist() == [[0, 1, 0, 2], [0, 2, 0, 0]]
    assert batch.loss_mask_BT.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert batch.advantages_BT.tolist() == [[0, 0.5, 0, -0.5], [0, 0, 0, 0]]  # never called: -0.5 + 0.5
    assert torch.allclose(batch.behavior_logprobs_BT, torch.tensor([[0, -0.1, 0, -0.1], [0, -0.1, 0, 0]]))
    assert batch.policy_versions_BT.tolist() == [[-1, 4, -1, 4], [-1, 5, -1, -1]]
    assert batch.position_ids_3R.shape == (3, 6)
    assert batch.position_ids_3R[2].tolist() == [200, 201, 202, 203, 200, 201]
    assert batch.packing == (Tree(0, (4,)), Tree(0, (2,)))


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


def test_a_block_that_siblings_show_is_packed_once(trajectory, scored_group, block):
    siblings = [trajectory(1, 1, frames=block("window")), trajectory(1, 1), trajectory(0, 2)]
    samples = build_training_samples(
        scored_group(siblings, [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], coarse_frames=block("v0"))
    )
    processor = CountingProcessor()

    batch = collate(samples, processor)

    assert processor.packed == ["v0", "window"]
    assert [video.digest for video in batch.videos] == ["v0", "window", "v0", "v0"]
    assert batch.videos[0] is batch.videos[2]


def test_what_siblings_begin_with_stands_in_the_row_once(trajectory, scored_group, block):
    siblings = [trajectory(1, 1, frames=block("window")), trajectory(1, 2), trajectory(0, 2)]
    samples = build_training_samples(
        scored_group(siblings, [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], coarse_frames=block("v0"))
    )

    batch = collate(samples, CountingProcessor(), sharings=shared(samples))

    assert batch.packing == (Tree(1, (3, 4, 2)),)
    assert batch.token_ids_R.tolist() == [10, 11, 12, 13, 11, 12, 13, 14, 11, 12]
    assert batch.places_BT.tolist() == [[0, 1, 2, 3, -1], [0, 4, 5, 6, 7], [0, 8, 9, -1, -1]]
    assert batch.position_ids_3R[0].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 1, 2]
    assert [video.digest for video in batch.videos] == ["v0", "window"]


def test_an_empty_micro_batch_is_a_row_of_padding_without_a_gradient():
    batch = collate((), CountingProcessor())

    assert batch.token_ids_R.tolist() == [PAD, PAD]
    assert not batch.loss_mask_BT.any()
    assert batch.videos == ()


# A bigram policy: logits of the next token are a table's row. Enough to take real gradients through the whole path.
VOCABULARY = 100


def bigram_logprobs(table, batch):
    logits = torch.log_softmax(table[batch.token_ids_BT[:, :-1]], dim=-1)
    chosen = logits.gather(-1, batch.token_ids_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(chosen, (1, 0))


def gradient(table, samples, micro, totals, **options):
    """Sum of the gradients of micro-batches."""
    normaliser = options.pop("normaliser", "sequence")
    table = table.clone().requires_grad_()
    for sharings in micro:
        batch = collate(samples, CountingProcessor(), sharings=sharings)
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
    whole = gradient(table, samples, [alone(samples)], totals, normaliser=normaliser, ratio=ratio)

    ranks = [learned_from([two_groups[i] for i in mine]) for mine in assign_ranks([9, 8], 2)]
    assert loss_totals(ranks[0]) + loss_totals(ranks[1]) == totals
    assert whole.abs().max() > 1e-3
    for size, find in product((1, 2, 3), (alone, shared)):
        split = sum(
            gradient(
                table, rank, [*micro_batches(find(rank), Limits(size)), ()], totals, normaliser=normaliser, ratio=ratio
            )
            for rank in ranks
        )
        assert torch.allclose(split, whole, atol=1e-6, rtol=0)


def test_equal_rewards_leave_the_policy_alone(trajectory, scored_group, table):
    scored = scored_group([trajectory(1, 2), trajectory(0, 3)], [(0.7, 0.3), (0.7, 0.3)])
    samples = build_training_samples(scored)

    assert not gradient(table, samples, [alone(samples)], loss_totals(samples)).any()


def test_injected_tokens_are_never_trained_on_whatever_their_ids(trajectory, scored_group, table):
    def with_injected(token_id):
        looked = trajectory(1, 2)
        look, last = looked.turns
        return replace(looked, turns=(look, replace(last, context_token_ids=(token_id,))))

    for injected in range(20, 60):
        scored = scored_group([with_injected(injected), trajectory(0, 3)], [(1.0, 0.0), (0.0, 1.0)])
        samples = build_training_samples(scored)
        batch = collate(samples[:1], CountingProcessor())
        logits = table[batch.token_ids_BT[:, :-1]].clone().requires_grad_()
        logp = torch.log_softmax(logits, -1).gather(-1, batch.token_ids_BT[:, 1:, None])[..., 0]
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


def test_to_a_gpu_everything_but_pixels_is_sent_at_once_through_pinned_memory(monkeypatch, trajectory, scored_group):
    """As far as a machine without one can see: what would be sent, and how."""
    pinned, sent = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, where, **how: sent.append((self, where, how)) or self)
    block = PackedVideo(np.zeros((8, 3), np.uint8), (2,), 2, 2, (0.0,))
    other = PackedVideo(np.ones((4, 3), np.uint8), (1,), 2, 2, (0.0,))
    samples = build_training_samples(scored_group([trajectory(1, 1), trajectory(0, 1)], [(1.0, 0.0), (0.0, 1.0)]))
    batch = replace(collate(samples, CountingProcessor()), videos=(block, other, block))

    there = on_device(batch, GPU)

    tensors = [value for field in fields(batch) if torch.is_tensor(value := getattr(batch, field.name))]
    assert [id(tensor) for tensor, *_ in sent] == [id(tensor) for tensor in tensors]
    assert all((where, how) == (GPU, {"non_blocking": True}) for _, where, how in sent)
    assert len(pinned) == len(tensors) + 2  # a block that is shown twice once
    assert there.videos[0] is there.videos[2] is not there.videos[1]
    assert (there.videos[1].patches_ND == other.patches_ND).all()
    assert on_device(batch, torch.device("cpu")) is batch
