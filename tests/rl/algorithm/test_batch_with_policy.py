"""The whole path on the real policy: splitting a batch, down to an empty micro-batch, leaves its gradient alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.algorithm.batch import build_training_samples, collate, loss_totals, micro_batches
from rl.algorithm.loss import policy_loss, token_weights
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.families import FAMILIES
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.scoring_head import token_logprobs
from rl.policy.tiny import build_tiny_policy


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tmp_path_factory):
    tiny = TinyPolicyConfig(family=request.param)
    folder = build_tiny_policy(tiny, ScenesConfig(), tmp_path_factory.mktemp("policy"), seed=0)
    return load_policy(folder, ScenesConfig()), Processor.from_pretrained(folder, ScenesConfig())


@pytest.fixture
def samples(policy, trajectory, scored_group):
    """Four siblings that share the opening frames; three looked again, each at another window."""
    _, processor = policy
    noise, side = np.random.default_rng(0), 2 * processor.geometry.unit

    def video(num_frames):
        pixels = noise.integers(0, 255, (num_frames, side, side, 3), np.uint8)
        return processor.make_frames(pixels, [0.5 * t for t in range(num_frames)])

    def shown(episode, opening):
        blocks = (opening, *(turn.frames for turn in episode.turns[1:]))
        turns = [
            replace(turn, context_token_ids=tuple(processor.video_block(block)))
            for turn, block in zip(episode.turns, blocks, strict=True)
        ]
        return replace(episode, turns=tuple(turns))

    opening = video(4)
    siblings = [trajectory(2, 3 + n, frames=video(2 + n)) for n in range(3)] + [trajectory(0, 4)]
    rewards = [(0.9, 0.0), (0.2, 1.0), (0.4, 1.0), (0.0, 0.3)]
    return build_training_samples(scored_group([shown(s, opening) for s in siblings], rewards, opening))


def gradients(policy, parts, totals):
    model, processor = policy
    model.zero_grad()
    for part in parts:
        batch = collate(part, processor)
        logp, _ = token_logprobs(
            model,
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.position_ids_3BT,
            batch.videos,
            allowed_V=torch.from_numpy(processor.allowed_token_mask()),
            scored_BT=batch.loss_mask_BT,
        )
        weights = token_weights(batch.segment_ids_BT, batch.loss_mask_BT, totals, normaliser="segment")
        policy_loss(logp, logp.detach(), batch.advantages_BT, weights, batch.loss_mask_BT).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_splitting_a_batch_leaves_the_gradient_alone(policy, samples):
    totals = loss_totals(samples)

    whole = gradients(policy, [samples], totals)
    split = gradients(policy, micro_batches(samples, 3, count=3), totals)

    assert max(float(grad.abs().max()) for grad in whole.values()) > 1e-2
    for name, grad in whole.items():
        assert torch.allclose(split[name], grad, atol=1e-6, rtol=1e-4), name
