"""Frames compared by what the vision tower's first block makes of them, instead of by pixels.

The features are those of the policy that training starts from: patch embedding (of a scene of one frame) and first
block, frozen in a file of the policy's folder (rl.policy.feature_file writes it). Every folder that is made of a policy
later has the same file, so that a clip is cut alike whatever training has done to the tower. Plain numpy, one frame at
a time: a frame has the same features in any block, and whoever decodes videos needs no torch.

Legend: N patches of a frame · D values of a patch (3 * p * p) · C hidden size of the tower · I of its MLP · T frames.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from rl.policy.token_ids import PolicyFilesError

FEATURE_FILE = "scene_features.npz"
EPS, ROPE_THETA = 1e-6, 10_000.0  # of both families' towers


@dataclass(frozen=True, slots=True)
class FeatureShape:
    """What of config.json shapes the features."""

    patch: int  # side in pixels
    heads: int
    window: int  # side in patches of what a patch attends to; 0: the whole frame
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


class SceneFeatures:
    """Patch embedding and first block of a vision tower, of either family."""

    LARGEST_CHANGE = 2.001  # a little more than the distance of opposite unit vectors

    def __init__(self, shape: FeatureShape, weights: Mapping[str, np.ndarray], digest: str) -> None:
        """
        Args:
            weights: `kernel` (D, C), `bias` (C) and `positions` (side * side, C) where the family has them, and the
                block's own under the names of Hugging Face, float32.
            digest: of the file they come from; part of the scenes' fingerprint.
        """
        self.shape, self.digest, self._weights = shape, digest, dict(weights)

    @classmethod
    def read(cls, folder: str | Path) -> SceneFeatures:
        """From a policy's folder.

        Raises:
            PolicyFilesError: there is no such file, or it is damaged.
        """
        path = Path(folder) / FEATURE_FILE
        try:
            content = path.read_bytes()
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            settings = json.loads(str(arrays.pop("shape")))
            lists = {name: tuple(settings.pop(name)) for name in ("pixel_mean", "pixel_std")}
            shape = FeatureShape(**settings, **lists)
        except FileNotFoundError:
            raise PolicyFilesError(
                f"{path}: no such file, and policy.scenes.difference=features compares frames by what it holds; a "
                "stock checkpoint is given it when it is converted, any later folder when it is saved"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise PolicyFilesError(
                f"{path}: cannot be read ({error}); copy it again from the policy's origin"
            ) from error
        return cls(shape, arrays, hashlib.sha256(content).hexdigest()[:12])

    def of(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Features (N, C) of a uint8 frame, patches row by row."""
        weights, (grid_h, grid_w) = self._weights, self._grid(frame_HWC)
        hidden_NC = self._patches(frame_HWC) @ weights["kernel"]
        if "bias" in weights:
            hidden_NC += weights["bias"]
        if "positions" in weights:
            hidden_NC += _interpolated(weights["positions"], grid_h, grid_w)
        hidden_NC += self._attended(self._norm(hidden_NC, "norm1"), grid_h, grid_w)
        return hidden_NC + self._mlp(self._norm(hidden_NC, "norm2"))

    def changes(self, frames_THWC: np.ndarray) -> Callable[[int, int], float]:
        """Δ of two of the frames, 0 to 2: the mean over patches of the distance of their features as unit vectors."""
        units_TNC = []
        for frame_HWC in frames_THWC:
            features_NC = self.of(frame_HWC)
            units_TNC.append(features_NC / np.maximum(np.linalg.norm(features_NC, axis=1, keepdims=True), EPS))

        @cache
        def change(reference: int, frame: int) -> float:
            return float(np.linalg.norm(units_TNC[frame] - units_TNC[reference], axis=1).mean(dtype=np.float64))

        return change

    def _grid(self, frame_HWC: np.ndarray) -> tuple[int, int]:
        return frame_HWC.shape[0] // self.shape.patch, frame_HWC.shape[1] // self.shape.patch

    def _patches(self, frame_HWC: np.ndarray) -> np.ndarray:
        """(N, D), normalised; values of a patch as the kernel has them: channel, row, column."""
        patch, (grid_h, grid_w) = self.shape.patch, self._grid(frame_HWC)
        mean_C, std_C = (np.asarray(values, np.float32) for values in (self.shape.pixel_mean, self.shape.pixel_std))
        normalised_HWC = (frame_HWC.astype(np.float32) / 255 - mean_C) / std_C
        split = normalised_HWC.reshape(grid_h, patch, grid_w, patch, 3).transpose(0, 2, 4, 1, 3)
        return split.reshape(grid_h * grid_w, -1)

    def _norm(self, hidden_NC: np.ndarray, name: str) -> np.ndarray:
        """LayerNorm where it has a bias, else RMSNorm."""
        weight_C, bias_C = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        if bias_C is not None:
            hidden_NC = hidden_NC - hidden_NC.mean(1, keepdims=True)
        scaled_NC = hidden_NC / np.sqrt(np.square(hidden_NC).mean(1, keepdims=True) + EPS) * weight_C
        return scaled_NC if bias_C is None else scaled_NC + bias_C

    def _linear(self, hidden: np.ndarray, name: str) -> np.ndarray:
        return hidden @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _attended(self, hidden_NC: np.ndarray, grid_h: int, grid_w: int) -> np.ndarray:
        num_patches, heads = len(hidden_NC), self.shape.heads
        qkv = self._linear(hidden_NC, "attn.qkv").reshape(num_patches, 3, heads, -1).transpose(1, 2, 0, 3)
        cosines, sines = _rotary(grid_h, grid_w, qkv.shape[-1])
        queries, keys = (_rotated(part, cosines, sines) for part in qkv[:2])
        mixed = np.empty_like(queries)
        for places in _windows(grid_h, grid_w, self.shape.window):
            scores = queries[:, places] @ keys[:, places].transpose(0, 2, 1) * np.float32(qkv.shape[-1] ** -0.5)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, places] = scores / scores.sum(-1, keepdims=True) @ qkv[2][:, places]
        return self._linear(mixed.transpose(1, 0, 2).reshape(num_patches, -1), "attn.proj")

    def _mlp(self, hidden_NC: np.ndarray) -> np.ndarray:
        """Gated by SiLU (Qwen2.5-VL), or plain with GELU (Qwen3-VL)."""
        if "mlp.gate_proj.weight" in self._weights:
            gate_NI = self._linear(hidden_NC, "mlp.gate_proj")
            gated_NI = gate_NI / (1 + np.exp(-gate_NI)) * self._linear(hidden_NC, "mlp.up_proj")
            return self._linear(gated_NI, "mlp.down_proj")
        inner_NI = self._linear(hidden_NC, "mlp.linear_fc1")
        cubed_NI = np.float32((2 / np.pi) ** 0.5) * (inner_NI + np.float32(0.044715) * inner_NI**3)
        return self._linear(np.float32(0.5) * inner_NI * (1 + np.tanh(cubed_NI)), "mlp.linear_fc2")


@lru_cache(maxsize=16)
def _windows(grid_h: int, grid_w: int, window: int) -> tuple[np.ndarray, ...]:
    """Places of the patches of each window, which may be smaller at the far edges."""
    rows_N, columns_N = np.divmod(np.arange(grid_h * grid_w), grid_w)
    if not window:
        return (np.arange(grid_h * grid_w),)
    window_N = rows_N // window * grid_w + columns_N // window
    return tuple(np.flatnonzero(window_N == number) for number in np.unique(window_N))


@lru_cache(maxsize=16)
def _rotary(grid_h: int, grid_w: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (N, head_dim): half of the frequencies turn with the row, half with the column."""
    rows_N, columns_N = np.divmod(np.arange(grid_h * grid_w), grid_w)
    frequencies = ROPE_THETA ** -(np.arange(0, head_dim // 2, 2) / (head_dim // 2))
    angles = np.concatenate([np.outer(rows_N, frequencies), np.outer(columns_N, frequencies)], axis=1)
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotated(heads_HND: np.ndarray, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
    half = heads_HND.shape[-1] // 2
    turned = np.concatenate([-heads_HND[..., half:], heads_HND[..., :half]], axis=-1)
    return heads_HND * cosines + turned * sines


def _interpolated(table: np.ndarray, grid_h: int, grid_w: int) -> np.ndarray:
    """Learned positions (N, C), bilinear between the corners of a square table."""
    side = round(len(table) ** 0.5)
    rows, columns = (_axis_weights(grid, side) for grid in (grid_h, grid_w))
    grid = np.einsum("hi,wj,ijc->hwc", rows, columns, table.reshape(side, side, -1), optimize=True)
    return grid.reshape(grid_h * grid_w, -1)


@lru_cache(maxsize=16)
def _axis_weights(grid: int, side: int) -> np.ndarray:
    """(grid, side): how much of each learned position a place along one axis has."""
    places = np.linspace(0, side - 1, grid) if grid > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side))).astype(np.float32)
