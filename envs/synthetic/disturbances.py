"""What a camera does to footage: the light drifts and flickers, the camera shakes, the sensor is noisy.

Each disturbance leaves what happens in a clip as it is, and is a function of pixels, a strength and a seed.

Legend: T frames · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Disturbance = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]  # (frames_THWC, strength, rng) -> THWC


def drifting_light(frames_THWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness goes evenly from one end of 1 ± strength to the other over the clip, up or down."""
    gains_T = np.linspace(1 - strength, 1 + strength, len(frames_THWC))
    return _lit(frames_THWC, gains_T if rng.integers(2) else gains_T[::-1])


def flickering_light(frames_THWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Each frame has a brightness of its own: normal, strength is the standard deviation of the gain."""
    return _lit(frames_THWC, rng.normal(1, strength, len(frames_THWC)))


def shaking_camera(frames_THWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Each frame is moved by up to `strength` whole pixels along either axis; edges are repeated."""
    most = round(strength)
    moved = []
    for frame_HWC, (down, right) in zip(frames_THWC, rng.integers(-most, most + 1, (len(frames_THWC), 2)), strict=True):
        padded = np.pad(frame_HWC, ((most, most), (most, most), (0, 0)), mode="edge")
        top, left = most - down, most - right
        moved.append(padded[top : top + frame_HWC.shape[0], left : left + frame_HWC.shape[1]])
    return np.stack(moved)


def sensor_noise(frames_THWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Each value of each pixel is off by a normal number; strength is its standard deviation, in 255ths."""
    return _rounded(frames_THWC + rng.normal(0, strength, frames_THWC.shape))


DISTURBANCES: Mapping[str, Disturbance] = {
    "drift": drifting_light,
    "flicker": flickering_light,
    "shake": shaking_camera,
    "noise": sensor_noise,
}


def _lit(frames_THWC: np.ndarray, gains_T: np.ndarray) -> np.ndarray:
    return _rounded(frames_THWC * gains_T[:, None, None, None])


def _rounded(values_THWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values_THWC), 0, 255).astype(np.uint8)
