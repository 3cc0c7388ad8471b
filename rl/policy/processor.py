"""Text to token ids, frames to video blocks: everything the policy sees, prepared once for engine and learner.

No torch and no transformers: the tokenizer is read with `tokenizers`, geometry from config.json. Ids and sizes always
come from the checkpoint's files.

Legend: T frames · H W pixels · C channels · V vocabulary, padded as the model's is.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from rl.config.policy import ScenesConfig
from rl.policy.chat_template import opens_thought
from rl.policy.geometry import Geometry, PackedVideo, require_clock
from rl.policy.layout import find_blocks, video_block
from rl.policy.policy_folder import OPTIONAL_FILES, TOKENIZER_FILES, require_inert, require_model_ids
from rl.policy.positions import SceneClock, mrope_positions
from rl.policy.scene_features import SceneFeatures
from rl.policy.scenes import fingerprint, image_frames, segment_scenes
from rl.policy.token_ids import VISION_TOKENS, PolicyFilesError, TokenIds
from rl.policy.tokenizer_file import read_tokenizer
from rl.trajectory import Frames

UNFINISHED = "\ufffd"  # what decoding puts for bytes that are no character, or not yet


class Processor:
    """Turns text into ids, frames into video blocks, and says where every token stands."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        geometry: Geometry,
        scenes: ScenesConfig,
        folder: Path,
        *,
        opens_thought: bool = False,
    ) -> None:
        """
        Args:
            opens_thought: the policy's prompts end within an open `<think>`, as a Thinking checkpoint's do.
        """
        self.ids = TokenIds.of(tokenizer)
        self.scenes = scenes
        self.geometry = geometry
        self.folder = folder
        self.opens_thought = opens_thought
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
        require_clock(scenes, geometry, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, scenes: ScenesConfig) -> Processor:
        """Read tokenizer.json, config.json and the chat template of a policy folder.

        Raises:
            PolicyFilesError: a file is missing or does not fit the other.
        """
        folder = Path(folder)
        require_inert(folder)
        tokenizer, geometry = read_tokenizer(folder), Geometry.read(folder)
        processor = cls(tokenizer, geometry, scenes, folder, opens_thought=opens_thought(folder))
        require_model_ids(folder, processor.ids)
        return processor

    @property
    def digest_prefix(self) -> str:
        """Names the encoder in every digest: the same pixels cut or packed differently are another video."""
        features = self._features.digest if self._features else ""
        return f"{fingerprint(self.scenes, features)}-{self.geometry.patch}x{self.geometry.merge}"

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
        """The size to resize frames to; see Geometry.fit."""
        return self.geometry.fit(height, width, max_pixels)

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
        unit = self.geometry.unit
        if pixels_THWC.ndim != 4 or any(side == 0 or side % unit for side in pixels_THWC.shape[1:3]):
            raise ValueError(f"frames must be (T, H, W, 3) with sides in multiples of {unit}, got {pixels_THWC.shape}")
        num_frames, height, width, _ = pixels_THWC.shape
        if (
            len(times_s_T) != num_frames
            or not all(map(math.isfinite, times_s_T))
            or list(times_s_T) != sorted(times_s_T)
        ):
            raise ValueError(f"{num_frames} frames need as many finite, non-decreasing times, got {times_s_T}")
        lengths = self.cut(pixels_THWC)
        digest = hashlib.sha256(repr((self.digest_prefix, pixels_THWC.shape, times_s_T, lengths)).encode())
        digest.update(pixels_THWC)
        return Frames(pixels_THWC, times_s_T, lengths, height, width, digest.hexdigest())

    def cut(self, pixels_THWC: np.ndarray) -> tuple[int, ...]:
        """Scene lengths of frames; see rl.policy.scenes.segment_scenes."""
        return segment_scenes(pixels_THWC, self.scenes, self._features)

    def pack(self, frames: Frames) -> PackedVideo:
        """Patches in merge order; see Geometry.pack."""
        return self.geometry.pack(frames)

    def visual_tokens(self, frames: Frames) -> int:
        """Placeholders of a block (timestamps and markers not counted)."""
        return len(frames.scene_lengths) * self.geometry.clock(frames).tokens_per_scene

    @property
    def image_frames(self) -> int:
        """Frames as which an image is shown: one scene."""
        return image_frames(self.scenes)

    def video_block(self, frames: Frames) -> list[int]:
        """A block as the family lays it out: each scene's time as text (unless `timestamps: none`), its placeholders,
        expanded, and the markers around them; see rl.policy.layout."""
        return self.block_at(self.geometry.clock(frames))

    def block_at(self, clock: SceneClock) -> list[int]:
        """The block of a video of which its scenes' times and its size are known; see `video_block`."""
        written = self.scenes.timestamps == "text"
        times_K = [self._encode_time(time_s) if written else [] for time_s in clock.times_s_K]
        return video_block(times_K, clock.tokens_per_scene, self.ids, self.geometry.family.markers)

    def block_spans(self, token_ids: Sequence[int], videos: Sequence[Frames]) -> list[tuple[int, int]]:
        """Start and stop of the videos' blocks in a sequence that holds them, in order."""
        return find_blocks(token_ids, [self.video_block(frames) for frames in videos], self.ids.video_pad)

    def positions(self, token_ids: Sequence[int], videos: Sequence[Frames]) -> np.ndarray:
        """MRoPE positions (3, T tokens) of a whole sequence and the videos in it, in order."""
        clocks, geometry = [self.geometry.clock(frames) for frames in videos], self.geometry
        rate, markers = geometry.tokens_per_second, geometry.family.markers
        return mrope_positions(token_ids, clocks, ids=self.ids, tokens_per_second=rate, markers=markers)

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

    @cached_property
    def _features(self) -> SceneFeatures | None:
        """What frames are compared by, if not by pixels; read where the first frames are cut."""
        return SceneFeatures.read(self.folder) if self.scenes.difference == "features" else None

    def _encode_time(self, seconds: float) -> list[int]:
        text = f"<{seconds:.1f} seconds>"
        if text not in self._time_ids:
            self._time_ids[text] = self.encode(text)
        return self._time_ids[text]
