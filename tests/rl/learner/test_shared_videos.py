"""Blocks that micro-batches have in common: encoded once, and the tower learns what it would have learned."""

from functools import partial

import numpy as np
import pytest
import torch

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.learner.mini_batch import _chunks
from rl.learner.shared_videos import SharedVideos
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.policy.vision_tower import Encoded
from rl.trajectory import Frames


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tmp_path_factory):
    tiny = TinyPolicyConfig(
        family=request.param, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600
    )
    folder = build_tiny_policy(tiny, ScenesConfig(), tmp_path_factory.mktemp("policy"), seed=7)
    return load_policy(folder, ScenesConfig()), Processor.from_pretrained(folder, ScenesConfig())


@pytest.fixture
def batches(policy):
    """Three micro-batches of one sequence each: two blocks, the first of which all show; one shows it alone."""
    _, processor = policy
    unit = processor.geometry.unit
    rng = np.random.default_rng(0)

    def block(frames):
        pixels = rng.integers(0, 256, (frames, 5 * unit, 3 * unit, 3), dtype=np.uint8)
        return processor.make_frames(pixels, np.arange(frames) / 2)

    opening, looks = block(7), (block(2), block(4))
    found = []
    for shown in ((opening, looks[0]), (opening, looks[1]), (opening,)):
        ids = [token for frames in shown for token in (*processor.video_block(frames), *processor.encode("and"))]
        positions = torch.from_numpy(processor.positions(ids, shown))[:, None]
        videos = [processor.pack(frames) for frames in shown]
        found.append({"input_ids": torch.tensor([ids]), "position_ids": positions, "videos": videos})
    return found


def gradients(model, losses):
    model.zero_grad()
    for loss in losses:
        loss().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("keep_graph", [True, False])
def test_the_gradient_is_that_of_encoding_them_every_time(policy, batches, keep_graph):
    model, _ = policy
    weights = torch.randn(600, generator=torch.Generator().manual_seed(3))

    def loss(batch, **given):
        logits = model(**batch, **given).logits
        return (logits[..., :600].sin() @ weights).sum()

    expected = gradients(model, [partial(loss, batch) for batch in batches])
    encoded = []
    hook = model.model.visual.register_forward_hook(lambda _, inputs, __: encoded.append(inputs[1]))
    shared = SharedVideos(model, [batches[0]["videos"][:1], []], world_size=1, keep_graph=keep_graph)
    found = gradients(
        model, [*(partial(loss, batch, encoded=Encoded(tokens=shared.tokens)) for batch in batches), *shared.losses()]
    )
    hook.remove()
    opening = batches[0]["videos"][0]
    grids = [grid for grids in encoded for grid in grids]
    assert grids.count((opening.num_scenes, opening.grid_h, opening.grid_w)) == shared.passes == 2 - keep_graph
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale + 1e-9, msg=name)


def frames(digest, scenes=1):
    return Frames(np.empty(0), (0.0,) * scenes, (1,) * scenes, 28, 28, digest)


@pytest.mark.parametrize(
    ("shown", "chunks"),
    [
        ([], []),
        (["ab", "cd"], []),  # nothing in common: nothing is done
        (["ab", "bc", "d"], [["b"]]),
        (["ab", "ab", "cd", "cd"], [["a", "b"], ["c", "d"]]),  # as many together as a micro-batch shows
    ],
)
def test_only_blocks_of_several_micro_batches_are_encoded_apart(shown, chunks):
    found = _chunks([{digest: frames(digest) for digest in blocks} for blocks in shown])
    assert [[block.digest for block in chunk] for chunk in found] == chunks
