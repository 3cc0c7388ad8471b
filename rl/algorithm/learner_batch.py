"""A micro-batch as tensors: what the policy reads, packed into one row, and what the loss reads, a row per sample.

Legend: B samples · T tokens of a sample, right-padded · R tokens of the packed row · S sampled tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from rl.algorithm.packing import Sharing, alone
from rl.policy.packing import Packing, Tree
from rl.trajectory import Frames, Segment, TrainingSample

if TYPE_CHECKING:
    from rl.policy.geometry import PackedVideo
    from rl.policy.token_ids import TokenIds

BLANK_TOKENS = 2  # of a micro-batch without a sample


class VideoPacker(Protocol):
    """What collating needs of rl.policy.processor.Processor."""

    ids: TokenIds

    def pack(self, frames: Frames) -> PackedVideo:
        """Patches as the vision tower reads them."""

    def positions(self, token_ids: Sequence[int], videos: Sequence[Frames]) -> np.ndarray:
        """MRoPE positions, int64 (3, T)."""


@dataclass(frozen=True, slots=True, eq=False)
class LearnerBatch:
    """One micro-batch as tensors. Values of a token stand at its own place, 0 on context and padding."""

    token_ids_R: Tensor
    position_ids_3R: Tensor
    packing: Packing  # of the row
    videos: tuple[PackedVideo, ...]  # in order of appearance in the row; the same one more than once is one object
    places_BT: Tensor  # of each sample's tokens in the row; -1 on padding
    segment_ids_BT: Tensor
    loss_mask_BT: Tensor  # bool: learned from
    behavior_logprobs_BT: Tensor
    advantages_BT: Tensor
    policy_versions_BT: Tensor  # -1 on context and padding

    @property
    def token_ids_BT(self) -> Tensor:
        """Each sample's tokens; on padding the last of the packed row."""
        return self.token_ids_R[self.places_BT]


def collate(
    samples: Sequence[TrainingSample],
    processor: VideoPacker,
    sharings: Sequence[Sharing] | None = None,
    *,
    multiple_of: int = 1,
) -> LearnerBatch:
    """Tensors of one micro-batch. A block that samples show alike is packed once.

    Args:
        sharings: which samples are in the micro-batch, and what they share; None: all of them, and nothing. Without
            any the row is two tokens without a gradient, so that its rank can take part in the forward pass.
        multiple_of: tokens that no sample has are put behind the row until its length is.
    """
    sharings = alone(samples) if sharings is None else sharings
    if not any(sharing.members for sharing in sharings):
        samples = (_blank(processor.ids.pad),)
        sharings = alone(samples)
    rows = [samples[member] for sharing in sharings for member in sharing.members]
    row = _lay_out(samples, sharings, processor)
    packing = tuple(Tree(sharing.tokens, sharing.own_tokens) for sharing in sharings)
    if missing := -len(row.token_ids) % multiple_of:
        row.token_ids.extend([processor.ids.pad] * missing)
        row.positions.append(np.zeros((3, missing), dtype=np.int64))
        packing = (*packing, Tree(0, (missing,)))
    return LearnerBatch(
        token_ids_R=torch.tensor(row.token_ids),
        position_ids_3R=torch.from_numpy(np.concatenate(row.positions, axis=1)),
        packing=packing,
        videos=_packed_once(row.videos, processor),
        places_BT=_padded(row.places, -1, torch.long),
        segment_ids_BT=_padded([sample.segment_ids for sample in rows], Segment.CONTEXT.value, torch.long),
        loss_mask_BT=_padded([sample.loss_mask for sample in rows], False, torch.bool),
        behavior_logprobs_BT=_padded([sample.behavior_logprobs for sample in rows], 0.0, torch.float32),
        advantages_BT=_padded([sample.advantages for sample in rows], 0.0, torch.float32),
        policy_versions_BT=_padded([sample.policy_versions for sample in rows], -1, torch.long),
    )


def on_device(batch: LearnerBatch, device: torch.device) -> LearnerBatch:
    """A micro-batch where it is computed. To a GPU tensors go through pinned memory, so that nobody waits for them;
    pixels stay on the CPU, pinned, until the vision tower takes them."""
    if device.type != "cuda":
        return batch
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    sent = {name: v.pin_memory().to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)}
    pinned = {video: pinned_video(video) for video in dict.fromkeys(batch.videos)}
    return replace(batch, **sent, videos=tuple(pinned[video] for video in batch.videos))


def pinned_video(video: PackedVideo) -> PackedVideo:
    """The same in pinned memory."""
    return replace(video, patches_ND=torch.from_numpy(video.patches_ND).pin_memory().numpy())


def sampled_values(batch: LearnerBatch, values_BT: Tensor) -> Iterator[np.ndarray]:
    """Of each sample, the values at its sampled tokens (S, float32); NaN on those not learned from."""
    learned_BT = values_BT.detach().float().masked_fill(~batch.loss_mask_BT, float("nan")).cpu()
    sampled_BT = (batch.segment_ids_BT != Segment.CONTEXT.value).cpu()
    return (row_T[mask_T].numpy() for row_T, mask_T in zip(learned_BT, sampled_BT, strict=True))


@dataclass(frozen=True, slots=True)
class _Row:
    """The packed row, piece by piece."""

    token_ids: list[int]
    positions: list[np.ndarray]  # (3, tokens of the piece)
    videos: list[Frames]
    places: list[list[int]]  # of each sample's tokens


def _lay_out(samples: Sequence[TrainingSample], sharings: Sequence[Sharing], processor: VideoPacker) -> _Row:
    """One sharing after the other: its first sample whole, of the others what they do not share."""
    row = _Row([], [], [], [])
    for sharing in sharings:
        start, known_tokens, known_videos = len(row.token_ids), 0, 0
        for member in sharing.members:
            sample = samples[member]
            own = len(row.token_ids) + sharing.tokens - known_tokens
            row.places.append(
                [*range(start, start + sharing.tokens), *range(own, own + len(sample.token_ids) - sharing.tokens)]
            )
            row.token_ids.extend(sample.token_ids[known_tokens:])
            row.positions.append(processor.positions(sample.token_ids, sample.videos)[:, known_tokens:])
            row.videos.extend(sample.videos[known_videos:])
            known_tokens, known_videos = sharing.tokens, sharing.videos
    return row


def _packed_once(videos: Sequence[Frames], processor: VideoPacker) -> tuple[PackedVideo, ...]:
    packed: dict[str, PackedVideo] = {}
    for frames in videos:
        if frames.digest not in packed:
            packed[frames.digest] = processor.pack(frames)
    return tuple(packed[frames.digest] for frames in videos)


def _blank(pad_id: int) -> TrainingSample:
    zeros = (0.0,) * BLANK_TOKENS
    return TrainingSample(
        (pad_id,) * BLANK_TOKENS,
        (0,) * BLANK_TOKENS,
        (0,) * BLANK_TOKENS,
        zeros,
        zeros,
        (False,) * BLANK_TOKENS,
        (-1,) * BLANK_TOKENS,
        (),
    )


def _padded(rows: Sequence[Sequence], fill: float, dtype: torch.dtype) -> Tensor:
    padded_BT = torch.full((len(rows), max(len(row) for row in rows)), fill, dtype=dtype)
    for row_T, values in zip(padded_BT, rows, strict=True):
        row_T[: len(values)] = torch.as_tensor(values, dtype=dtype)
    return padded_BT
