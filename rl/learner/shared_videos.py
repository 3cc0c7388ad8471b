"""Video blocks that several micro-batches of an optimizer step show, encoded once by a tower that learns.

A block's visual tokens are given to every micro-batch as leaves, on which the gradients of all of them add up. One loss
per chunk of blocks, at the end of the step, hands the sum on to the tower: the derivative of (tokens · gradient) by the
tower's weights is what the micro-batches would have added one by one. Tokens are in float32, so that nothing is rounded
while they add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl.policy.geometry import PackedVideo
from rl.policy.video_policy import VideoPolicy
from rl.policy.vision_tower import VisualTokens


class SharedVideos:
    """One optimizer step's shared blocks.

    shared = SharedVideos(engine.deepspeed, chunks, world_size=2, keep_graph=False)
    model(ids, mask, positions, videos, encoded=Encoded(tokens=shared.tokens))  # every micro-batch, then its backward
    engine.step([*losses, *shared.losses()], lr)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        chunks: Sequence[Sequence[PackedVideo]],
        *,
        world_size: int,
        keep_graph: bool,
    ) -> None:
        """Encode them; collective at ZeRO 3.

        Args:
            model: the policy in training, or the DeepSpeed engine around it.
            chunks: blocks encoded together, equally many chunks on every rank; an empty one is a blank scene.
            keep_graph: activations stay until the last loss; else the tower runs once more for it.
        """
        self._model, self._chunks, self._world_size = model, chunks, world_size
        self._kept: list[VisualTokens | None] = []
        self._leaves: list[list[VisualTokens]] = []
        self.tokens: dict[str, VisualTokens] = {}  # by the blocks' digests
        self.passes = (1 if keep_graph else 2) * sum(map(len, chunks))  # of the tower, one for each block
        for chunk in chunks:
            with torch.set_grad_enabled(keep_graph):
                embeddings_NE, *levels = model(None, run=partial(VideoPolicy.encode_chunk, videos=chunk))
            encoded = VisualTokens(embeddings_NE, tuple(levels))
            leaves = [_leaf(tokens) for tokens in encoded.split(_sizes(chunk, encoded))] if chunk else []
            self.tokens |= dict(zip((video.digest for video in chunk), leaves, strict=True))
            self._leaves.append(leaves)
            self._kept.append(encoded if keep_graph else None)

    def losses(self) -> list[Callable[[], Tensor]]:
        """What hands the gradients on, a loss per chunk, in every parameter's graph: for after all micro-batches."""
        return [
            partial(self._loss, *arguments) for arguments in zip(self._chunks, self._leaves, self._kept, strict=True)
        ]

    def _loss(self, chunk: Sequence[PackedVideo], leaves: Sequence[VisualTokens], kept: VisualTokens | None) -> Tensor:
        """Gradients of leaves are of losses multiplied by the number of ranks, as this one will be."""
        run = partial(VideoPolicy.closing_loss, videos=chunk, gradients=[_gradient(leaf) for leaf in leaves], kept=kept)
        return self._model(None, run=run) / self._world_size


def _sizes(chunk: Sequence[PackedVideo], encoded: VisualTokens) -> list[int]:
    patches = [video.num_scenes * video.patches_per_frame for video in chunk]
    return [len(encoded.embeddings_NE) * number // sum(patches) for number in patches]


def _leaf(tokens: VisualTokens) -> VisualTokens:
    return tokens.mapped(lambda tokens_NE: tokens_NE.detach().float().clone().requires_grad_())


def _gradient(leaf: VisualTokens) -> VisualTokens:
    """Zero where a micro-batch read the tokens and learned nothing from them."""
    return leaf.mapped(lambda tokens_NE: torch.zeros_like(tokens_NE) if tokens_NE.grad is None else tokens_NE.grad)
