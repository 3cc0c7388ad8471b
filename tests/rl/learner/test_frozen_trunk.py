"""Features of a tower that does not learn: computed once for each content, kept up to a budget, the same to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.learner.frozen_trunk import FeatureCache, FrozenTrunk, content_key, require_equal_trunks
from rl.policy.geometry import PackedVideo
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.policy.vision_tower import Encoded

CPU = torch.device("cpu")
BYTES = 16  # of what the fake trunk makes of a block


def block(value, times_s_K=(0.0,)):
    return PackedVideo(np.full((4, 12), value, np.uint8), (1,), 2, 2, times_s_K)


class FakeModel:
    """Its features say which block they are of; every call is kept."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, *, run):
        assert input_ids is None
        return self._features(**run.keywords)

    def _features(self, video):
        self.seen.append(int(video.patches_ND[0, 0]))
        return (torch.full((4, 1), float(video.patches_ND[0, 0])),)


def test_a_block_is_encoded_once_whoever_asks():
    model = FakeModel()
    trunk = FrozenTrunk(model, 10**6, CPU, gathers=False)
    one, other, later = block(1), block(2), block(1, times_s_K=(9.0,))
    for _ in range(2):  # the policy asks, then the reference
        found = trunk.features_of([one, other, one])
        assert {video: int(features[0][0]) for video, features in found.items()} == {one: 1, other: 2}
    assert torch.equal(trunk.features_of([later])[later][0], found[one][0])  # times are written in text
    assert model.seen == [1, 2]
    use = trunk.taken_use()
    assert (use.asked, use.encoded) == (5, 2)
    assert trunk.taken_use().asked == 0


@pytest.mark.parametrize(
    ("budget", "asked", "encoded"),
    [
        (0, [1, 1], [1, 1]),  # nothing fits
        (BYTES, [1, 1, 2, 1], [1, 2, 1]),  # one fits
        (2 * BYTES, [1, 2, 1, 3, 1, 2], [1, 2, 3, 2]),  # 2 is the least recently used when 3 comes
    ],
)
def test_what_was_not_used_for_longest_is_dropped(budget, asked, encoded):
    model = FakeModel()
    trunk = FrozenTrunk(model, budget, CPU, gathers=False)
    for value in asked:
        trunk.features_of([block(value)])
        assert trunk.cache.num_bytes <= budget
    assert model.seen == encoded


def test_more_than_the_budget_is_never_kept_even_alone():
    cache = FeatureCache(budget=BYTES)
    cache.put(b"small", (torch.zeros(4),))
    cache.put(b"large", (torch.zeros(4), torch.zeros(1)))
    assert cache.get(b"large") is None and cache.get(b"small") is not None and cache.num_bytes == BYTES


def test_pinned_memory_counts_as_the_powers_of_two_that_torch_takes():
    features = (torch.zeros(5), torch.zeros(4))  # 20 and 16 bytes
    for pinned, taken in ((False, 36), (True, 48)):
        cache = FeatureCache(taken, pinned=pinned)
        cache.put(b"first", features)
        assert cache.num_bytes == taken
        cache.put(b"second", features)
        assert cache.get(b"first") is None and cache.num_bytes == taken


@pytest.mark.parametrize(
    "change",
    [
        {"scene_lengths": (2, 2)},
        {"grid_h": 1},
        {"patches_ND": np.arange(8 * 12, dtype=np.uint8).reshape(8, 12)},
    ],
)
def test_pixels_scenes_and_grid_make_another_block(change):
    base = PackedVideo(np.zeros((8, 12), np.uint8), (1, 3), 2, 1, (0.0, 1.0))
    assert content_key(replace(base, **change)) != content_key(base)
    assert content_key(replace(base, times_s_K=(5.0, 6.0))) == content_key(base)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tmp_path_factory):
    tiny = TinyPolicyConfig(
        family=request.param, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600
    )
    folder = build_tiny_policy(tiny, ScenesConfig(), tmp_path_factory.mktemp("policy"), seed=7)
    return load_policy(folder, ScenesConfig()), Processor.from_pretrained(folder, ScenesConfig())


@torch.no_grad()
def test_features_in_place_of_pixels_give_the_bits_of_the_whole_tower(policy):
    model, processor = policy
    unit = processor.geometry.unit
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9 * unit, 13 * unit, 3), dtype=np.uint8)
    frames = processor.make_frames(pixels, np.arange(5) / 2)
    ids, video = processor.video_block(frames), processor.pack(frames)
    positions = torch.from_numpy(processor.positions(ids, [frames]))[:, None]
    features = FrozenTrunk(model, 10**8, CPU, gathers=False).features_of([video])
    whole = model(torch.tensor([ids]), position_ids=positions, videos=[video]).logits
    assert torch.equal(
        model(torch.tensor([ids]), position_ids=positions, videos=[video], encoded=Encoded(features)).logits, whole
    )


def test_mergers_learn_from_features_also_where_there_is_no_video(policy):
    model, processor = policy
    ids = processor.encode("no video here")
    positions = torch.from_numpy(processor.positions(ids, []))[:, None]
    model.zero_grad()
    model(torch.tensor([ids]), position_ids=positions, encoded=Encoded({})).logits.sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trunk = {
        f"model.visual.{part}.{name}"
        for part, module in model.model.visual.trunk_parts()
        for name, _ in module.named_parameters()
    }
    assert reached == {name for name, _ in model.named_parameters()} - trunk


def test_models_with_different_trunks_share_nothing(policy):
    model, _ = policy
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        next(other.model.visual.merger.parameters()).add_(1)  # which learns
        require_equal_trunks(model, other)
        next(other.model.visual.blocks.parameters()).add_(1)
    with pytest.raises(ValueError, match="differ before the mergers"):
        require_equal_trunks(model, other)
