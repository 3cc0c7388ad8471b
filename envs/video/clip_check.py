"""Whether a clip shows the same pictures however it is decoded: in one pass from its start, and entered at keyframes.

Some streams come out damaged, or as noise, where decoding begins in their middle, though a pass from the start is
sound: a look of a policy would then see what no person sees.

Legend: N displayable frames of a clip.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import av
import numpy as np

from envs.video.file import CorruptVideoError
from envs.video.frames import Scaler, decode
from envs.video.index import VideoIndex
from envs.video.length import BAD_SHARE

MOST_LOOKS = 32  # single frames decoded again, each from its keyframe
SAMPLED_LOOKS = 4
SAMPLED_RUN = 250  # frames before a sampled one that are decoded at most: hour-long clips may have a single keyframe
FIRST_RUN = 1000  # the same, from the start of a clip on
STRETCH = 1024  # frames of which a tenth may be damaged
REMEDY = "re-encode or replace the file"
Shown = tuple[int, bytes]  # number of the picture, digest of its pixels


@dataclass(frozen=True, slots=True)
class ClipCheck:
    """What was tried on a clip, and came out whole or bridged."""

    frames: int  # decoded in one pass
    damaged: int  # of them, those that neighbours stand in for
    looks: int  # single frames decoded again from their keyframes, with equal pixels


def check_clip_frames(index: VideoIndex, most_looks: int = MOST_LOOKS) -> ClipCheck:
    """Decode every frame in one pass from the start, then random ones behind keyframes by themselves.

    Raises:
        CorruptVideoError: more than a tenth of a stretch of frames is damaged, or a frame comes out differently when it
            is decoded by itself.
    """
    rng = random.Random(index.num_frames)  # the same frames whenever the clip is checked
    looks = sorted(rng.choice(group) for group in _sampled(_groups(index), most_looks, rng))
    expected, damaged = _one_pass(index, set(looks))
    for number in looks:
        if number in expected:
            _require_same(index, number, expected[number])
    return ClipCheck(index.num_frames, damaged, len(expected))


def sample_clip_frames(index: VideoIndex, looks: int = SAMPLED_LOOKS) -> ClipCheck:
    """Decode a few random frames twice: on from the keyframe before their own, and by themselves.

    One is behind the second keyframe, which is then reached from the start of the clip: some decoders need its first
    packet.

    Raises:
        CorruptVideoError: one comes out damaged, or differently.
    """
    rng = random.Random(index.num_frames)
    groups = _groups(index)
    decoded = damaged = compared = 0
    for place in sorted({min(1, len(groups) - 1), *rng.sample(range(len(groups)), min(looks - 1, len(groups)))}):
        number = rng.choice(groups[place][:SAMPLED_RUN])
        first = groups[max(place - 1, 0)].start
        first = first if place == 1 and number <= FIRST_RUN else max(first, number - SAMPLED_RUN)
        [(shown, picture, is_damaged)] = deque(decode(index, range(first, number + 1)), maxlen=1)
        decoded, damaged = decoded + number + 1 - first, damaged + is_damaged
        if not is_damaged:
            _require_same(index, number, (shown, _digest(index, picture)))
            compared += 1
    if damaged > 1:
        raise CorruptVideoError(index.path, f"{damaged} of {damaged + compared} frames tried are damaged", REMEDY)
    return ClipCheck(decoded, damaged, compared)


def _one_pass(index: VideoIndex, looks: set[int]) -> tuple[dict[int, Shown], int]:
    """What some frames that are sound show, and how many frames are damaged."""
    kept: dict[int, Shown] = {}
    damaged = in_stretch = 0
    for number, (shown, picture, is_damaged) in enumerate(decode(index, range(index.num_frames))):
        in_stretch = is_damaged + (in_stretch if number % STRETCH else 0)
        damaged += is_damaged
        length = min(STRETCH, index.num_frames - number // STRETCH * STRETCH)
        if in_stretch > BAD_SHARE * length:
            problem = f"more than a tenth of {length} frames up to {index.times_s_N[number]:.2f} s are damaged"
            raise CorruptVideoError(index.path, problem, REMEDY)
        if number in looks and not is_damaged:
            kept[number] = shown, _digest(index, picture)
    return kept, damaged


def _require_same(index: VideoIndex, number: int, expected: Shown) -> None:
    [(shown, picture, is_damaged)] = decode(index, [number])
    if is_damaged or (shown, _digest(index, picture)) != expected:
        how = "is damaged" if is_damaged else "is another picture"
        problem = f"the frame at {index.times_s_N[number]:.2f} s {how} when decoding begins at its keyframe"
        raise CorruptVideoError(index.path, f"{problem}, and is sound in a pass from the start", REMEDY)


def _digest(index: VideoIndex, picture: av.VideoFrame) -> bytes:
    """Of the pixels at their full size: 32 pictures of 8K would not fit into memory."""
    pixels_HWC = Scaler(index.orientation, (index.height, index.width))(picture)
    return hashlib.blake2b(np.ascontiguousarray(pixels_HWC)).digest()


def _groups(index: VideoIndex) -> list[range]:
    """Frames that are decoded from one keyframe, in display order."""
    starts_N = index.start_P[index.packet_N]
    firsts = [0, *(np.flatnonzero(np.diff(starts_N)) + 1).tolist(), index.num_frames]
    return [range(first, end) for first, end in pairwise(firsts)]


def _sampled(groups: Sequence[range], most: int, rng: random.Random) -> Iterator[range]:
    yield from groups if len(groups) <= most else rng.sample(groups, most)
