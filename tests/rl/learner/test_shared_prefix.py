"""Packed rows with shared openings give the log-probs, losses and gradients of the samples in padded rows of their own.

Whatever siblings did: no call, a look, two looks, a call that was refused, an answer cut short. Both families, with a
reference policy and with activation checkpointing. Beside it, what would go wrong: branches that see each other.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.algorithm.batch import loss_totals
from rl.algorithm.learner_batch import collate
from rl.algorithm.loss import policy_loss, token_weights
from rl.algorithm.packing import Limits, alone, micro_batches, with_common_openings
from rl.config.algorithm import LossConfig
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.learner.metrics import Tally
from rl.learner.mini_batch import MiniBatch
from rl.learner.objective import Objective
from rl.policy.families import FAMILIES
from rl.policy.model import load_policy, recompute_activations
from rl.policy.packing import Tree
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.trajectory import TrainingSample
from tests.padded_rows import padded_logprobs

LOGPROBS_NAT, GRADIENTS = 2e-5, 5e-5  # absolute; relative to the parameter's gradient
LOUD = 20.0  # the head's weights times this: log-probs that spread by nats, so that an error shows
KL_BETA = 0.1
ROOMY = Limits(100)
KINDS = ("no call", "a look", "two looks", "refused", "truncated")


@dataclass(frozen=True)
class Policy:
    """A policy in training, another one that it is held against, and what reads videos for both."""

    model: torch.nn.Module
    reference: torch.nn.Module
    processor: Processor


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tmp_path_factory):
    def made(seed):
        folder = tmp_path_factory.mktemp("policy")
        tiny = build_tiny_policy(TinyPolicyConfig(family=request.param), ScenesConfig(), folder, seed=seed)
        model = load_policy(tiny, ScenesConfig()).train()
        with torch.no_grad():
            model.lm_head.weight.mul_(LOUD)
        return model, tiny

    (model, folder), (reference, _) = made(0), made(1)
    return Policy(model, reference.requires_grad_(False).eval(), Processor.from_pretrained(folder, ScenesConfig()))


class Writer:
    """Makes up groups: random pixels, random words, as the protocol lays them out."""

    def __init__(self, processor, seed):
        self.processor, self.noise = processor, np.random.default_rng(seed)
        self.writable = np.flatnonzero(processor.allowed_token_mask())

    def words(self, most):
        return self.noise.choice(self.writable, self.noise.integers(1, most + 1)).tolist()

    def frames(self, most):
        count, side = int(self.noise.integers(1, most + 1)), self.processor.geometry.unit
        pixels = self.noise.integers(0, 255, (count, side, 2 * side, 3), np.uint8)
        return self.processor.make_frames(pixels, [0.5 * t for t in range(count)])

    def group(self, kinds):
        opening = self.frames(6)
        prompt = [*self.processor.video_block(opening), *self.words(20)]
        return [self.sibling(kind, opening, prompt) for kind in kinds]

    def sibling(self, kind, opening, prompt):
        looks = {"a look": 1, "two looks": 2, "truncated": 1}.get(kind, 0)
        blocks, turns = [self.frames(4) for _ in range(looks)], [(prompt, self.words(9))]
        turns += [(self.processor.video_block(block), self.words(9)) for block in blocks]
        turns += [(self.words(5), self.words(9))] if kind == "refused" else []
        columns = [
            (token, 1 + (turn == len(turns) - 1) if written else 0, turn)
            for turn, parts in enumerate(turns)
            for written, tokens in enumerate(parts)
            for token in tokens
        ]
        token_ids, segment_ids, turn_ids = map(tuple, zip(*columns, strict=True))
        learned = tuple(bool(s) and not (kind == "truncated" and s == 2) for s in segment_ids)
        values = self.noise.normal(size=(2, len(columns)))
        return TrainingSample(
            token_ids=token_ids,
            segment_ids=segment_ids,
            turn_ids=turn_ids,
            behavior_logprobs=tuple(np.where(segment_ids, -abs(values[0]) - 3, 0.0)),
            advantages=tuple(np.where(learned, values[1], 0.0)),
            loss_mask=learned,
            policy_versions=tuple(0 if s else -1 for s in segment_ids),
            videos=(opening, *blocks),
        )


@dataclass(frozen=True)
class Scored:
    """Of samples, in their order: log-probs and entropies of learned tokens; the loss and its gradients."""

    logprobs: list[np.ndarray]
    entropies: list[np.ndarray]
    loss: float
    gradients: dict[str, torch.Tensor]


def in_padded_rows(policy, samples):
    batch, options = collate(samples, policy.processor), LossConfig(kl_beta=KL_BETA)
    mask_BT = batch.loss_mask_BT
    policy.model.zero_grad()
    logp_BT, entropy_BT = padded_logprobs(policy.model, samples, policy.processor, mask_BT)
    with torch.no_grad():
        reference_BT, _ = padded_logprobs(policy.reference, samples, policy.processor, mask_BT)
    weights_BT = token_weights(batch.segment_ids_BT, mask_BT, loss_totals(samples), normaliser=options.normaliser)
    old_BT = logp_BT.detach()
    rest = {"behavior_logp_BT": batch.behavior_logprobs_BT, "tis_cap": options.tis_cap, "kl_beta": KL_BETA}
    terms = policy_loss(logp_BT, old_BT, batch.advantages_BT, weights_BT, mask_BT, ref_logp_BT=reference_BT, **rest)
    terms.loss.backward()
    return Scored(
        rows(logp_BT, mask_BT), rows(entropy_BT, mask_BT), float(terms.loss.detach()), gradients(policy.model)
    )


def in_packed_rows(policy, samples, sharings, limits=ROOMY):
    objective = Objective(
        policy.model,
        LossConfig(kl_beta=KL_BETA),
        reference=policy.reference,
        allowed_V=torch.from_numpy(policy.processor.allowed_token_mask()),
        temperature=1.0,
        world_size=1,
    )
    cut = [*micro_batches(sharings, limits), ()]  # a rank may have an empty one
    order = tuple(member for batch in cut for sharing in batch for member in sharing.members)
    makers = tuple(partial(collate, samples, policy.processor, sharings=batch) for batch in cut)
    part = MiniBatch(makers, tuple(cut), loss_totals(samples), order)
    policy.model.zero_grad()
    loss, logprobs, entropies = 0.0, [], []
    for batch in (make() for make in makers):
        summand = objective.policy_loss(part, batch, None, Tally(), None)
        summand.backward()
        loss += float(summand.detach())
        with torch.no_grad():
            logp_BT, entropy_BT = objective._score(policy.model, batch, batch.loss_mask_BT)
        logprobs += rows(logp_BT, batch.loss_mask_BT)
        entropies += rows(entropy_BT, batch.loss_mask_BT)
    return Scored(part.by_sample(logprobs), part.by_sample(entropies), loss, gradients(policy.model))


def rows(values_BT, mask_BT):
    return [row[mask].detach().numpy() for row, mask in zip(values_BT, mask_BT, strict=True)]


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal(found, expected):
    for mine, theirs in zip(found.logprobs + found.entropies, expected.logprobs + expected.entropies, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=LOGPROBS_NAT)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-5)
    assert found.gradients.keys() == expected.gradients.keys()
    whole = torch.stack([grad.norm() for grad in expected.gradients.values()]).norm()
    for name, grad in expected.gradients.items():
        assert (found.gradients[name] - grad).norm() <= GRADIENTS * grad.norm() + 1e-7 * whole, name


groups = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), min_size=1, max_size=2)


@given(kinds=groups, seed=st.integers(0, 1000), most=st.sampled_from([1, 3, 100]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_rows_score_and_teach_as_padded_ones(policy, kinds, seed, most):
    writer = Writer(policy.processor, seed)
    samples = [sample for group in kinds for sample in writer.group(group)]
    expected = in_padded_rows(policy, samples)

    assert_equal(
        in_packed_rows(policy, samples, with_common_openings(samples, policy.processor), Limits(most)), expected
    )
    assert_equal(in_packed_rows(policy, samples, alone(samples), Limits(most)), expected)


def test_what_siblings_share_is_computed_once(policy):
    samples = Writer(policy.processor, 0).group(KINDS)

    (sharing,) = with_common_openings(samples, policy.processor)
    batch = collate(samples, policy.processor, sharings=[sharing])

    opening = samples[0].segment_ids.index(2)
    assert sharing.tokens == opening and sharing.videos == 1
    assert len(batch.token_ids_R) == opening + sum(len(sample.token_ids) - opening for sample in samples)
    assert len(batch.videos) == 5 and len(set(batch.videos)) == 5  # the opening's, and four looks


def test_with_activation_checkpointing_nothing_changes(policy):
    samples = Writer(policy.processor, 1).group(KINDS)
    sharings = with_common_openings(samples, policy.processor)
    plain = in_packed_rows(policy, samples, sharings)

    recompute_activations(policy.model, language=True, vision=True)
    try:
        recomputed = in_packed_rows(policy, samples, sharings)
    finally:
        policy.model.gradient_checkpointing_disable()

    assert recomputed.loss == plain.loss
    assert all(torch.equal(recomputed.gradients[name], grad) for name, grad in plain.gradients.items())


def test_branches_that_saw_each_other_would_be_off_by_nats(policy):
    """The control: the log-probs above spread enough for such a fault to show."""
    samples = Writer(policy.processor, 2).group(("a look", "two looks", "a look"))
    (sharing,) = with_common_openings(samples, policy.processor)
    batch = collate(samples, policy.processor, sharings=[sharing])
    (tree,) = batch.packing
    merged = replace(batch, packing=(Tree(tree.shared, (sum(tree.branches),)),))
    objective = Objective(
        policy.model,
        LossConfig(),
        reference=None,
        allowed_V=torch.from_numpy(policy.processor.allowed_token_mask()),
        temperature=1.0,
        world_size=1,
    )

    right, wrong = (objective.logprobs(one, batch.loss_mask_BT) for one in (batch, merged))

    assert right[batch.loss_mask_BT].std() > 1.0
    assert (right - wrong).abs().max() > 0.5
