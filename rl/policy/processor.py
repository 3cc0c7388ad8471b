"""Text to token ids, pixels to packed patches: everything the policy sees, prepared once for engine and learner.

No torch and no transformers: the tokenizer is read with `tokenizers`, geometry from config.json. Ids and sizes always
come from the checkpoint's files.

Legend: T frames · H W pixels · C channels · K scenes · N patches (T * grid_h * grid_w) · D values of a patch
(3 * p * p) · V vocabulary, padded as the model's is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rl.config.policy import ScenesConfig
from rl.policy.positions import SceneClock, mrope_positions
from rl.policy.scenes import fingerprint, segment_scenes
from rl.policy.token_ids import TOKEN_TEXT, VISION_TOKENS, PolicyFilesError, TokenIds
from rl.trajectory import Frames

UNFINISHED = "\ufffd"  # what decoding puts for bytes that are no character, or not yet
MODEL_IDS = {  # keys of config.json, and what the tokenizer must number alike
    "video_token_id": "video_pad",
    "image_token_id": "image_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # weights in them run code when they are loaded
LONGEST_HEADER = 100_000_000  # bytes of JSON before the tensors; the format's own limit
OPTIONAL_FILES = (
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True, slots=True, eq=False)
class PackedVideo:
    """A video block as the vision tower reads it: patches in merge order, frame after frame."""

    patches_ND: np.ndarray  # uint8, N = T * grid_h * grid_w, D = (channel, row, column)
    scene_lengths: tuple[int, ...]  # frames of each scene; they sum to T
    grid_h: int  # patches
    grid_w: int
    start_s_K: tuple[float, ...]  # presentation time of each scene's first frame

    @property
    def patches_per_frame(self) -> int:
        """grid_h * grid_w."""
        return self.grid_h * self.grid_w

    @property
    def num_scenes(self) -> int:
        """K."""
        return len(self.scene_lengths)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What of config.json shapes tokens: patch and merge size, clock rate, vocabulary."""

    patch: int
    merge: int
    tokens_per_second: float
    vocab_size: int  # V

    @classmethod
    def read(cls, folder: Path) -> Geometry:
        """From the folder's config.json, nested (transformers 5) or flat (the hub's Qwen2.5-VL).

        Raises:
            PolicyFilesError: no such file, or not a Qwen2.5-VL configuration.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text())
            vision, text = config["vision_config"], config.get("text_config", config)
            patch = vision.get("patch_size", vision.get("spatial_patch_size", 14))
            tokens_per_second = vision.get("tokens_per_second", 4)
            return cls(patch, vision.get("spatial_merge_size", 2), tokens_per_second, text["vocab_size"])
        except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise PolicyFilesError(f"{path}: not a Qwen2.5-VL configuration ({error!r})") from error


class Processor:
    """Turns text into ids, frames into video blocks, and says where every token stands."""

    def __init__(self, tokenizer: Tokenizer, geometry: Geometry, scenes: ScenesConfig, folder: Path) -> None:
        self.ids = TokenIds.of(tokenizer)
        self.scenes = scenes
        self.geometry = geometry
        self.folder = folder
        self._tokenizer = tokenizer
        self._literal = Tokenizer.from_str(tokenizer.to_str())
        self._literal.encode_special_tokens = True
        self._vision_text = re.compile("(" + "|".join(map(re.escape, VISION_TOKENS)) + ")")
        self._time_ids: dict[str, list[int]] = {}
        if tokenizer.get_vocab_size(with_added_tokens=True) > geometry.vocab_size:
            raise PolicyFilesError(
                f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {geometry.vocab_size}: "
                "tokenizer.json and config.json are of different checkpoints"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, scenes: ScenesConfig) -> Processor:
        """Read tokenizer.json and config.json of a policy folder.

        Raises:
            PolicyFilesError: a file is missing or does not fit the other.
        """
        folder = Path(folder)
        require_inert(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise PolicyFilesError(f"{path}: no such file; a policy folder needs tokenizer.json")
        processor = cls(_read_tokenizer(path), Geometry.read(folder), scenes, folder)
        _require_model_ids(folder, processor.ids)
        return processor

    @property
    def digest_prefix(self) -> str:
        """Names the encoder in every digest: the same pixels cut or packed differently are another video."""
        return f"{fingerprint(self.scenes)}-{self.geometry.patch}x{self.geometry.merge}"

    def encode(self, text: str, *, markers: bool = True) -> list[int]:
        """Token ids of a text. A literal vision token, as in a data set's question, stays plain text.

        Args:
            text: chat markers and tags in it become their single tokens.
            markers: False makes chat markers plain text too; for text from outside.
        """
        if not markers:
            return self._literal.encode(text, add_special_tokens=False).ids
        pieces = self._vision_text.split(text)  # odd ones are vision tokens, spelt out
        tokenizers = (self._tokenizer, self._literal)
        return [
            token
            for i, piece in enumerate(pieces)
            for token in tokenizers[i % 2].encode(piece, add_special_tokens=False).ids
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, tags and markers included."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to the text of all: one string per token, together `decode`.

        Where a character is spread over several tokens, the last of them holds it. Bytes that are no character are
        U+FFFD where they stand.
        """
        pieces: list[str] = []
        held: list[int] = []  # from the last token that ends within a character
        given = ""  # of their text
        for token in token_ids:
            alone = self.decode([token])
            whole = self.decode([*held, token]) if held else alone
            if held and whole == self.decode(held) + alone:  # what was held will never become a character
                pieces[-1] += UNFINISHED
                held, given, whole = [], "", alone
            open_end = whole.endswith(UNFINISHED)
            text = whole.removesuffix(UNFINISHED)
            pieces.append(text[len(given) :])
            held, given = ([*held, token], text) if open_end else ([], "")
        if held:
            pieces[-1] += UNFINISHED
        return pieces

    def fit(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """The size to resize frames to: multiples of patch * merge, nearest in shape and area, at most max_pixels.

        Raises:
            ValueError: an empty frame, or max_pixels below one block.
        """
        unit = self.geometry.patch * self.geometry.merge
        if height < 1 or width < 1:
            raise ValueError(f"frames of {height} x {width} pixels cannot be encoded")
        if max_pixels < unit * unit:
            raise ValueError(f"max_pixels must be at least {unit * unit} ({unit} x {unit}), got {max_pixels}")
        rows, columns = max(1, round(height / unit)), max(1, round(width / unit))
        if rows * columns * unit * unit > max_pixels:
            shrink = math.sqrt(height * width / max_pixels)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
            most = max_pixels // (unit * unit)
            rows, columns = min(rows, most // columns or 1), min(columns, most // rows or 1)
        return rows * unit, columns * unit

    def make_frames(self, pixels_THWC: np.ndarray, timestamps_s: Sequence[float]) -> Frames:
        """Cut decoded frames into scenes and name the result.

        Args:
            pixels_THWC: uint8, RGB, already resized to `fit`.
            timestamps_s: presentation time of each frame, not decreasing.
        Raises:
            ValueError: sizes or times do not fit.
        """
        pixels_THWC = np.ascontiguousarray(pixels_THWC)
        times_s_T = tuple(float(time) for time in timestamps_s)
        unit = self.geometry.patch * self.geometry.merge
        if pixels_THWC.ndim != 4 or any(side == 0 or side % unit for side in pixels_THWC.shape[1:3]):
            raise ValueError(f"frames must be (T, H, W, 3) with sides in multiples of {unit}, got {pixels_THWC.shape}")
        num_frames, height, width, _ = pixels_THWC.shape
        if (
            len(times_s_T) != num_frames
            or not all(map(math.isfinite, times_s_T))
            or list(times_s_T) != sorted(times_s_T)
        ):
            raise ValueError(f"{num_frames} frames need as many finite, non-decreasing times, got {times_s_T}")
        lengths = segment_scenes(pixels_THWC, self.scenes)
        digest = hashlib.sha256(repr((self.digest_prefix, pixels_THWC.shape, times_s_T, lengths)).encode())
        digest.update(pixels_THWC)
        return Frames(pixels_THWC, times_s_T, lengths, height, width, digest.hexdigest())

    def pack(self, frames: Frames) -> PackedVideo:
        """Patches in merge order: frame by frame, blocks of merge x merge patches row by row, as in Qwen2.5-VL."""
        patch, merge = self.geometry.patch, self.geometry.merge
        grid_h, grid_w = frames.height // patch, frames.width // patch
        split = (-1, grid_h // merge, merge, patch, grid_w // merge, merge, patch, 3)
        patches = np.asarray(frames.pixels_THWC).reshape(split).transpose(0, 1, 4, 2, 5, 7, 3, 6)
        patches_ND = np.ascontiguousarray(patches).reshape(-1, 3 * patch * patch)
        return PackedVideo(patches_ND, frames.scene_lengths, grid_h, grid_w, _scene_starts(frames))

    def clock(self, frames: Frames) -> SceneClock:
        """When each scene starts and how many tokens it has."""
        patch = self.geometry.patch
        return SceneClock(_scene_starts(frames), frames.height // patch, frames.width // patch, self.geometry.merge)

    def visual_tokens(self, frames: Frames) -> int:
        """Placeholders of a block (timestamps and markers not counted)."""
        return len(frames.scene_lengths) * self.clock(frames).tokens_per_scene

    def video_block(self, frames: Frames) -> list[int]:
        """<|vision_start|>, then each scene's start time as text (unless `timestamps: none`) and its placeholders,
        expanded, then <|vision_end|>."""
        clock = self.clock(frames)
        block = [self.ids.vision_start]
        for start_s in clock.start_s_K:
            if self.scenes.timestamps == "text":
                block += self._encode_time(start_s)
            block += [self.ids.video_pad] * clock.tokens_per_scene
        return [*block, self.ids.vision_end]

    def positions(self, token_ids: Sequence[int], videos: Sequence[Frames]) -> np.ndarray:
        """MRoPE positions (3, T tokens) of a whole sequence and the videos in it, in order."""
        clocks = [self.clock(frames) for frames in videos]
        return mrope_positions(token_ids, clocks, ids=self.ids, tokens_per_second=self.geometry.tokens_per_second)

    def allowed_token_mask(self) -> np.ndarray:
        """Which ids may be sampled (V): not the vision tokens, not padding rows beyond the tokenizer."""
        allowed_V = np.zeros(self.geometry.vocab_size, dtype=bool)
        allowed_V[list(self._tokenizer.get_vocab(with_added_tokens=True).values())] = True
        banned = (self._tokenizer.token_to_id(text) for text in VISION_TOKENS)
        allowed_V[[token_id for token_id in banned if token_id is not None]] = False
        return allowed_V

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, chat template included, beside saved weights."""
        folder = Path(folder)
        if folder.resolve() == self.folder.resolve():
            return
        for name in (*TOKENIZER_FILES, *OPTIONAL_FILES):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    def _encode_time(self, seconds: float) -> list[int]:
        text = f"<{seconds:.1f} seconds>"
        if text not in self._time_ids:
            self._time_ids[text] = self.encode(text)
        return self._time_ids[text]


def require_inert(folder: Path) -> None:
    """Refuse a policy's folder that could run code in whoever loads it: weights as pickles, or code named in its files.

    Nothing of ours would run either; this says so before an engine and a learner start, and what to do instead.

    Raises:
        PolicyFilesError: names the file.
    """
    weights = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles and not weights:
        raise PolicyFilesError(
            f"{folder / pickles[0]}: weights as a pickle run code when they are loaded, and are never read; convert "
            "them to *.safetensors where you trust them (transformers: save_pretrained)"
        )
    for path in weights:
        _require_safetensors(path)
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _json_object(folder / name):
            raise PolicyFilesError(
                f"{folder / name}: names code of its own (auto_map), which is never run here; remove that key if the "
                "checkpoint is a Qwen2.5-VL without it"
            )
    for shard in _json_object(folder / "model.safetensors.index.json").get("weight_map", {}).values():
        if Path(str(shard)).name != shard:
            raise PolicyFilesError(f"{folder / 'model.safetensors.index.json'}: {shard!r:.100} is not a file beside it")


def _require_safetensors(path: Path) -> None:
    """The file begins as the format does: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        length, opening = int.from_bytes(file.read(8), "little"), file.read(1)
    if opening != b"{" or not 2 <= length <= min(LONGEST_HEADER, path.stat().st_size - 8):
        raise PolicyFilesError(f"{path}: cannot be read: not a safetensors file; was it downloaded in full?")


def _json_object(path: Path) -> dict[str, Any]:
    """A file of the folder that may be absent; what cannot be read is for its reader to refuse."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise PolicyFilesError(f"{path}: not a tokenizer ({error})") from error


def _require_model_ids(folder: Path, ids: TokenIds) -> None:
    """The model looks for its video at the ids of config.json, prompts hold those of the tokenizer."""
    declared = json.loads((folder / "config.json").read_text())
    for key, name in MODEL_IDS.items():
        if declared.get(key) not in (None, getattr(ids, name)):
            raise PolicyFilesError(
                f"{folder}: config.json has {key}={declared[key]}, tokenizer.json numbers {TOKEN_TEXT[name]} "
                f"{getattr(ids, name)}: they are of different checkpoints"
            )


def _scene_starts(frames: Frames) -> tuple[float, ...]:
    starts = np.cumsum((0, *frames.scene_lengths[:-1]))
    return tuple(frames.timestamps_s_T[first] for first in starts)
