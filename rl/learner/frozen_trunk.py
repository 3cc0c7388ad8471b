"""The part of a vision tower that does not learn, run once for each video block and never again while it is kept.

With `learner.freeze_vision` patch embedding and blocks are those that the run began with, in the policy and in its
reference alike: a block's features before the mergers are constant. They are kept in main memory, where there is more
room than on a GPU and from where they come in a fraction of the time that the trunk takes (pinned there, if there is a
GPU), up to `learner.vision_cache_bytes`; the least recently used go first. A block is always encoded by itself, so that
its features have the same bits whatever is encoded beside it, kept, or computed again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl.learner.digest import tensors_digest
from rl.policy.geometry import PackedVideo
from rl.policy.video_policy import VideoPolicy
from rl.policy.vision_tower import Features


@dataclass(slots=True)
class CacheUse:
    """What was asked for since the last report."""

    asked: int = 0  # blocks, one for each micro-batch and scoring
    encoded: int = 0  # of them, those that the trunk had to run for


@dataclass(slots=True)
class FeatureCache:
    """Features by key, in main memory; the least recently used are dropped where they would exceed the budget."""

    budget: int  # bytes
    pinned: bool = False  # for a GPU: torch pins memory in powers of two, which is what a tensor then takes
    num_bytes: int = 0
    _kept: OrderedDict[bytes, Features] = field(default_factory=OrderedDict)

    def get(self, key: bytes) -> Features | None:
        """Those of a key, which are then the most recently used; None: not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: bytes, features: Features) -> None:
        """Keep features that are not kept yet, unless they alone exceed the budget."""
        size = self._taken(features)
        if size > self.budget:
            return
        while self.num_bytes + size > self.budget:
            self.num_bytes -= self._taken(self._kept.popitem(last=False)[1])
        self._kept[key] = tuple(map(_to_main_memory, features))
        self.num_bytes += size

    def _taken(self, features: Features) -> int:
        """Bytes of main memory."""
        return sum(1 << (part.nbytes - 1).bit_length() if self.pinned else part.nbytes for part in features)


class FrozenTrunk:
    """Features of video blocks, by the trunk of a model or from the cache.

    trunk = FrozenTrunk(engine.deepspeed, cache_bytes, device, gathers=zero_stage == 3)
    model(ids, mask, positions, videos, encoded=Encoded(trunk.features_of(videos)))
    """

    def __init__(self, model: Callable[..., Any], cache_bytes: int, device: torch.device, *, gathers: bool) -> None:
        """
        Args:
            model: a VideoPolicy, or a DeepSpeed engine around it.
            gathers: a pass of the model is collective (ZeRO 3): all ranks then make as many as the one that needs most.
        """
        self._model, self._device, self._gathers = model, device, gathers
        self.cache, self._use = FeatureCache(cache_bytes, pinned=device.type == "cuda"), CacheUse()
        self._keys: dict[PackedVideo, bytes] = {}  # of the videos asked for last: a reference asks again

    @torch.no_grad()
    def features_of(self, videos: Sequence[PackedVideo]) -> dict[PackedVideo, Features]:
        """Of each video, on the device. Collective where passes are."""
        keys = {video: self._keys.get(video) or content_key(video) for video in dict.fromkeys(videos)}
        self._keys = keys
        found: dict[bytes, Features] = {}
        missing: dict[bytes, PackedVideo] = {}
        for video, key in keys.items():
            kept = self.cache.get(key)
            if kept is None:
                missing[key] = video
            else:
                found[key] = tuple(part.to(self._device, non_blocking=True) for part in kept)
        spare = self._most(len(missing)) - len(missing)
        for key, video in missing.items():
            found[key] = self._run(video)
            self.cache.put(key, found[key])
        for _ in range(spare):
            self._run(None)  # a blank scene, for the other ranks gather weights
        self._use.asked += len(keys)
        self._use.encoded += len(missing)
        return {video: found[key] for video, key in keys.items()}

    def taken_use(self) -> CacheUse:
        """What was asked for since the last call."""
        use, self._use = self._use, CacheUse()
        return use

    def _run(self, video: PackedVideo | None) -> Features:
        return self._model(None, run=partial(VideoPolicy.trunk_features, video=video))

    def _most(self, passes: int) -> int:
        """The largest number that any rank needs."""
        if not self._gathers:
            return passes
        most = torch.tensor(passes, device=self._device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)


def content_key(video: PackedVideo) -> bytes:
    """Names what the trunk sees: pixels, scene lengths and grid. Times are no part of it: they are written in text."""
    digest = hashlib.sha256(repr((video.scene_lengths, video.grid_h, video.grid_w)).encode())
    digest.update(video.patches_ND)
    return digest.digest()


def require_equal_trunks(policy: nn.Module, reference: nn.Module) -> None:
    """Refuse to share features between models whose trunks differ; of weights that are cut up this rank's part is seen.

    Raises:
        ValueError: they differ.
    """
    mine, its = (tensors_digest(dict(_trunk_weights(model))) for model in (policy, reference))
    if mine != its:
        raise ValueError("learner.freeze_vision: the vision towers of policy and reference differ before the mergers")


def _trunk_weights(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for part, module in model.model.visual.trunk_parts():
        for name, parameter in module.named_parameters():
            yield f"{part}.{name}", getattr(parameter, "ds_tensor", parameter).detach()


def _to_main_memory(part: Tensor) -> Tensor:
    """There already on a CPU. From a GPU the copy is queued behind what computes the values, and so is a copy back."""
    if part.device.type == "cpu":
        return part
    return torch.empty_like(part, device="cpu", pin_memory=True).copy_(part, non_blocking=True)
