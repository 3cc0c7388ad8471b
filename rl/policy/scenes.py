"""Adaptive Temporal Segmentation: cut a video where it stops resembling the scene's first frame (FlexiVideo).

Two implementations with equal results: `segment_scenes`, a fused uint8 kernel that reads every pair of frames once, and
`segment_scenes_reference`, the definition in plain numpy. Scene lengths are decided once, where the video was decoded,
and travel as integers from there on. Frames may also be compared by features instead of pixels
(rl.policy.scene_features), and the threshold may adapt to the noise of the block (`noise_floor`).

Legend: T frames · H W pixels · C channels (RGB) · K scenes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable

import numba
import numpy as np

from rl.config.policy import ScenesConfig
from rl.policy.scene_features import SceneFeatures

IMAGENET_STD = (0.229, 0.224, 0.225)  # the mean cancels in a difference of frames
BISECTIONS = 12  # of tau between the configured value and the largest change there can be
PAIR_FRAMES = 2
FIXED6_FRAMES = 6
ALGORITHM_VERSION = 1  # raise it when the same parameters would cut or encode differently


def segment_scenes(
    frames_THWC: np.ndarray, scenes: ScenesConfig, features: SceneFeatures | None = None
) -> tuple[int, ...]:
    """Cut uint8 frames into scenes (FlexiVideo, Adaptive Temporal Segmentation).

    A scene is the longest run of frames with Δ(f_t, f_ref) <= tau, where Δ is the mean over pixels of the norm over
    channels of the difference of ImageNet-normalised frames and f_ref the scene's first frame (`reference: first`) or
    the frame before (`previous`). The frame that breaks it starts the next scene. With `threshold: adaptive`, tau is
    counted from the block's own noise floor. With `budget: pairs`, tau is raised by bisection until there are no more
    scenes than frame pairs. `fixed` and `fixed6` cut by count alone.

    Args:
        frames_THWC: the frames that will be encoded, resized, RGB, uint8.
        scenes: parameters; tau is in ImageNet-normalised units.
        features: what frames are compared by instead of pixels, with `difference: features`.
    Returns:
        Scene lengths in frames, in order; they sum to T.
    Raises:
        ValueError: no frames, not a uint8 array of shape (T, H, W, 3), or features are asked for and not given.
    """
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or frames_THWC.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 of shape (T, H, W, 3), got {frames_THWC.dtype} {frames_THWC.shape}")
    _require_frames(frames_THWC)
    if scenes.mode != "dynamic":
        return _cut_by_count(len(frames_THWC), scenes)
    if scenes.difference == "features":
        if features is None:
            raise ValueError("policy.scenes.difference=features needs the features of a policy's folder")
        return _segment_by(features.changes(frames_THWC), len(frames_THWC), scenes, features.LARGEST_CHANGE)
    frames_THWC = np.ascontiguousarray(frames_THWC)
    if scenes.difference_scale > 1:
        frames_THWC = _area_downscale(frames_THWC, scenes.difference_scale)
    scales_C = _channel_scales(scenes.norm)
    tau = scenes.tau
    if scenes.threshold == "adaptive":
        tau += noise_floor(_successive_changes(frames_THWC, scales_C), scenes)
    ends = _segment(
        frames_THWC,
        scales_C,
        tau,
        max(tau, _largest_change(scenes.norm)),
        scenes.max_scene_frames,
        scenes.reference == "first",
        _most_scenes(len(frames_THWC), scenes),
    )
    return tuple(int(length) for length in np.diff(ends, prepend=0))


def segment_scenes_reference(frames_THWC: np.ndarray, scenes: ScenesConfig) -> tuple[int, ...]:
    """The definition of `segment_scenes` by pixels in plain numpy, for float or uint8 frames with values in 0..255.

    Raises:
        ValueError: no frames, or NaN among the pixels.
    """
    _require_frames(frames_THWC)
    if np.isnan(frames_THWC).any():
        raise ValueError("frames contain NaN")
    if scenes.mode != "dynamic":
        return _cut_by_count(len(frames_THWC), scenes)
    normalised_THWC = _block_mean(frames_THWC.astype(np.float64), scenes.difference_scale) / 255 / IMAGENET_STD

    def change(reference: int, frame: int) -> float:
        squared_HW = np.square(normalised_THWC[frame] - normalised_THWC[reference]).sum(axis=-1)
        return float(np.sqrt(squared_HW / (3 if scenes.norm == "rms" else 1)).mean())

    return _segment_by(change, len(frames_THWC), scenes, _largest_change(scenes.norm))


def noise_floor(changes: np.ndarray, scenes: ScenesConfig) -> float:
    """How much frames of this block differ although nothing happens: what `threshold: adaptive` adds to tau.

        noise = Q(q), spread = Q(2 q) - Q(q), floor = min(noise + noise_spreads * spread, max_noise)

    where Q is the quantile of the differences of successive frames and q = `noise_quantile`. Cuts and motion are in the
    upper part of these differences as long as something stands still in a share 2 q of the block, and do not raise the
    floor. Sensor noise gives every difference the same addition: the floor rises by as much, scenes stay as they are
    (exactly so where a constant is added to all differences and the floor stays below `max_noise`). Flicker makes
    them scatter: their spread counts.

    In the limits: a still block and a single frame have floor 0, and are cut as with a fixed tau; where every frame is
    a cut, the floor is as high as a cut but for `max_noise`, so that each is found if it is larger than tau +
    `max_noise`. A slow drift of light adds up over a scene, and no floor sees it: that takes `reference: previous`.

    Args:
        changes: T - 1 differences of successive frames, in units of tau.
    """
    if not len(changes):
        return 0.0
    noise, above = np.quantile(np.asarray(changes, np.float64), (scenes.noise_quantile, 2 * scenes.noise_quantile))
    return float(min(noise + scenes.noise_spreads * (above - noise), scenes.max_noise))


def fingerprint(scenes: ScenesConfig, features: str = "") -> str:
    """Twelve hexadecimal digits that change whenever any parameter of the encoder does that acts.

    Args:
        features: digest of what frames are compared by, if not by pixels.
    """
    text = json.dumps({"version": ALGORITHM_VERSION, **scenes.acting}, sort_keys=True) + features
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _require_frames(frames_THWC: np.ndarray) -> None:
    if len(frames_THWC) == 0:
        raise ValueError("a video block needs at least one frame")


def image_frames(scenes: ScenesConfig) -> int:
    """Frames as which an image is shown: one scene, as long as the patch kernel where a scene may be."""
    if scenes.mode == "dynamic":
        return min(scenes.init_frames, scenes.max_scene_frames)
    return PAIR_FRAMES if scenes.mode == "fixed" else FIXED6_FRAMES


def _cut_by_count(num_frames: int, scenes: ScenesConfig) -> tuple[int, ...]:
    length = PAIR_FRAMES if scenes.mode == "fixed" else FIXED6_FRAMES
    whole, rest = divmod(num_frames, length)
    return (length,) * whole + ((rest,) if rest else ())


def _most_scenes(num_frames: int, scenes: ScenesConfig) -> int:
    """The budget K may not exceed; never below what `max_scene_frames` makes unavoidable."""
    if scenes.budget == "none":
        return num_frames
    return max(math.ceil(num_frames / PAIR_FRAMES), math.ceil(num_frames / scenes.max_scene_frames))


def _channel_scales(norm: str) -> np.ndarray:
    """Per channel, the factor from a difference of uint8 values to one of normalised values."""
    scales_C = 1 / (255 * np.asarray(IMAGENET_STD))
    return (scales_C / math.sqrt(3) if norm == "rms" else scales_C).astype(np.float32)


def _largest_change(norm: str) -> float:
    """Δ between a black and a white frame, and a little more."""
    squared = sum(std**-2 for std in IMAGENET_STD)
    return 1.001 * math.sqrt(squared / 3 if norm == "rms" else squared)


def _segment_by(
    change: Callable[[int, int], float], num_frames: int, scenes: ScenesConfig, largest: float
) -> tuple[int, ...]:
    """The rule itself, given Δ of two frames.

    Δ is compared in single precision, in which the kernel keeps it: the noise floor can be one of the differences
    itself, and a difference at the floor is no cut, however the last digits fall.

    Args:
        largest: a tau that no Δ exceeds.
    """

    def single_change(reference: int, frame: int) -> np.float32:
        return np.float32(change(reference, frame))

    tau = scenes.tau
    if scenes.threshold == "adaptive":
        tau += noise_floor(np.array([single_change(frame - 1, frame) for frame in range(1, num_frames)]), scenes)
    most = _most_scenes(num_frames, scenes)
    lengths = _cut(num_frames, single_change, tau, scenes)
    if len(lengths) <= most:
        return lengths
    low, high = tau, max(tau, largest)
    best = _cut(num_frames, single_change, high, scenes)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        lengths = _cut(num_frames, single_change, middle, scenes)
        low, high, best = (low, middle, lengths) if len(lengths) <= most else (middle, high, best)
    return best


def _cut(num_frames: int, change: Callable[[int, int], float], tau: float, scenes: ScenesConfig) -> tuple[int, ...]:
    lengths, first = [], 0
    for frame in range(1, num_frames):
        reference = first if scenes.reference == "first" else frame - 1
        if frame - first >= scenes.max_scene_frames or change(reference, frame) > tau:
            lengths.append(frame - first)
            first = frame
    return (*lengths, num_frames - first)


def _block_mean(frames_THWC: np.ndarray, scale: int) -> np.ndarray:
    """Area-downscale; blocks cut off by the right and lower edge are averaged over what is there."""
    for axis in (1, 2):
        size = frames_THWC.shape[axis]
        starts = np.arange(0, size, scale)
        counts = np.diff(starts, append=size).reshape([-1 if i == axis else 1 for i in range(4)])
        frames_THWC = np.add.reduceat(frames_THWC, starts, axis=axis) / counts
    return frames_THWC


@numba.njit(cache=True, nogil=True, fastmath=True)
def _area_downscale(frames_THWC: np.ndarray, scale: int) -> np.ndarray:  # pragma: no cover - compiled
    """As `_block_mean`, in float32: columns are summed over a band of rows first, which vectorises."""
    num_frames, height, width, _ = frames_THWC.shape
    rows, columns = -(-height // scale), -(-width // scale)
    small_THWC = np.empty((num_frames, rows, columns, 3), np.float32)
    band = np.empty(3 * width, np.int32)
    for t in range(num_frames):
        for row in range(rows):
            band[:] = 0
            top, bottom = row * scale, min(height, (row + 1) * scale)
            for y in range(top, bottom):
                line = frames_THWC[t, y].reshape(-1)
                for i in range(3 * width):
                    band[i] += line[i]
            for column in range(columns):
                left, right = column * scale, min(width, (column + 1) * scale)
                count = np.float32((bottom - top) * (right - left))
                for c in range(3):
                    total = 0
                    for x in range(left, right):
                        total += band[3 * x + c]
                    small_THWC[t, row, column, c] = np.float32(total) / count
    return small_THWC


@numba.njit(cache=True, nogil=True, fastmath=True)
def _change(
    first_HWC: np.ndarray, second_HWC: np.ndarray, scales_C: np.ndarray
) -> float:  # pragma: no cover - compiled
    """Δ of two frames in one pass over them: float32 within a row of pixels, float64 over rows.

    Squares of the interleaved channels go through a buffer of one row, so that both inner loops vectorise.
    """
    height, width, _ = first_HWC.shape
    factors = np.empty(3 * width, np.float32)
    for x in range(width):
        for c in range(3):
            factors[3 * x + c] = scales_C[c] * scales_C[c]
    squares = np.empty(3 * width, np.float32)
    total = 0.0
    for y in range(height):
        first, second = first_HWC[y].reshape(-1), second_HWC[y].reshape(-1)
        for i in range(3 * width):
            difference = np.float32(first[i]) - np.float32(second[i])
            squares[i] = difference * difference * factors[i]
        row = np.float32(0)
        for x in range(width):
            row += np.sqrt(squares[3 * x] + squares[3 * x + 1] + squares[3 * x + 2])
        total += row
    return total / (height * width)


@numba.njit(cache=True, nogil=True)
def _successive_changes(frames_THWC, scales_C):  # pragma: no cover - compiled
    """Δ of each frame and the one before it (T - 1)."""
    changes = np.empty(len(frames_THWC) - 1, np.float32)
    for frame in range(1, len(frames_THWC)):
        changes[frame - 1] = _change(frames_THWC[frame - 1], frames_THWC[frame], scales_C)
    return changes


@numba.njit(cache=True, nogil=True)
def _ends(frames_THWC, scales_C, tau, longest, from_first, known_TT, most):  # pragma: no cover - compiled
    """Ends of the scenes at one tau, and how many; stops counting beyond `most`. Δ is looked up where it is known."""
    num_frames = len(frames_THWC)
    ends = np.empty(num_frames, np.int64)
    count, first = 0, 0
    for frame in range(1, num_frames):
        cut = frame - first >= longest
        if not cut:
            reference = first if from_first else frame - 1
            if known_TT[reference, frame] < 0:
                known_TT[reference, frame] = _change(frames_THWC[reference], frames_THWC[frame], scales_C)
            cut = known_TT[reference, frame] > tau
        if cut:
            ends[count] = frame
            count, first = count + 1, frame
            if count >= most:
                return ends, most + 1
    ends[count] = num_frames
    return ends, count + 1


@numba.njit(cache=True, nogil=True)
def _segment(frames_THWC, scales_C, tau, largest, longest, from_first, most):  # pragma: no cover - compiled
    """Ends of the scenes at `tau`, or at the smallest bisected value above it that gives at most `most` scenes."""
    num_frames = len(frames_THWC)
    known_TT = np.full((num_frames, num_frames), -1.0, np.float32)
    ends, count = _ends(frames_THWC, scales_C, tau, longest, from_first, known_TT, most)
    if count <= most:
        return ends[:count]
    low, high = tau, largest
    best, best_count = _ends(frames_THWC, scales_C, high, longest, from_first, known_TT, most)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        ends, count = _ends(frames_THWC, scales_C, middle, longest, from_first, known_TT, most)
        if count <= most:
            high, best, best_count = middle, ends, count
        else:
            low = middle
    return best[:best_count]
