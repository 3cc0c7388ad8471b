"""Siblings of a group show one video object; the vision tower sees it once, and nobody can tell from the result."""

from dataclasses import replace

import pytest
import torch

from rl.policy.model import load_policy
from rl.policy.scoring_head import token_logprobs


@pytest.fixture
def model(tiny_dir, processor):
    return load_policy(tiny_dir, processor.scenes)


@torch.no_grad()
def test_a_shared_video_is_encoded_once_and_scores_the_same(model, processor, random_pixels, monkeypatch):
    frames = [processor.make_frames(random_pixels(t, seed=t), [i / 2 for i in range(t)]) for t in (4, 3)]
    ids = [[*processor.video_block(f), *processor.encode("what happens?")] for f in (frames[0], frames[1], frames[0])]
    width = max(map(len, ids))
    input_ids = torch.tensor([row + [processor.ids.pad] * (width - len(row)) for row in ids])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    positions = torch.zeros(3, 3, width, dtype=torch.long)
    for row, (token_ids, shown) in enumerate(zip(ids, (frames[0], frames[1], frames[0]), strict=True)):
        positions[:, row, : len(token_ids)] = torch.from_numpy(processor.positions(token_ids, [shown]))
    allowed_V = torch.from_numpy(processor.allowed_token_mask())
    opening, other = (processor.pack(f) for f in frames)
    encoded = []
    encode = model.encode_videos
    monkeypatch.setattr(model, "encode_videos", lambda videos: encoded.append(len(videos)) or encode(videos))

    def score(*videos):
        return token_logprobs(model, input_ids, attention_mask, positions, videos, allowed_V=allowed_V)[0]

    shared = score(opening, other, opening)
    apart = score(opening, other, replace(opening))

    assert encoded == [2, 3]
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-5)
