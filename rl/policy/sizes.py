"""The published sizes of each family: widths, depths and heads of their checkpoints. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rl.policy.families import QWEN2_5_VL, QWEN3_VL, Family
from rl.policy.token_ids import PolicyFilesError

HEAD_DIM = 128  # of every language model here
APACHE = "Apache-2.0"
QWEN2_5_LICENCES = {3: "Qwen Research License (non-commercial)", 72: "Qwen License"}  # the others: Apache-2.0


@dataclass(frozen=True, slots=True)
class TextSize:
    """The language model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab_rows: int  # of embedding and head; a few more than the tokenizer has tokens
    is_tied: bool  # the head is the embedding


@dataclass(frozen=True, slots=True)
class VisionSize:
    """The vision tower."""

    depth: int
    hidden: int
    intermediate: int
    heads: int = 16
    full_attention: tuple[int, ...] = ()  # blocks that do not attend within windows; empty: the tower has no windows
    deepstack: tuple[int, ...] = ()  # blocks whose output is added after early layers of the language model


@dataclass(frozen=True, slots=True)
class PublishedSize:
    """One size of a family, as its checkpoint on the hub has it."""

    family: Family
    name: str  # as on the command line: "3b"
    repository: str  # on the hub
    licence: str  # of its weights, as its model card there says
    text: TextSize
    vision: VisionSize

    def cut(self, layers: int | None = None, vision_layers: int | None = None) -> PublishedSize:
        """The same widths with fewer layers; None: all of them.

        The full-attention blocks that are left stay, and the last block is always one. DeepStack's blocks are spread as
        they were (`block * depth // published depth`); of its levels there are never more than language layers, because
        each is added after a layer of its own.

        Raises:
            PolicyFilesError: more layers than the checkpoint has, or none.
        """
        layers, depth = layers or self.text.layers, vision_layers or self.vision.depth
        for asked, has, what in ((layers, self.text.layers, "layers"), (depth, self.vision.depth, "vision layers")):
            if not 1 <= asked <= has:
                raise PolicyFilesError(f"{self.repository} has {has} {what}, {asked} cannot be kept of them")
        full, levels = self.vision.full_attention, self.vision.deepstack
        vision = replace(
            self.vision,
            depth=depth,
            full_attention=tuple(sorted({*(block for block in full if block < depth), depth - 1})) if full else (),
            deepstack=tuple(sorted({block * depth // self.vision.depth for block in levels}))[:layers],
        )
        return replace(self, text=replace(self.text, layers=layers), vision=vision)


def _qwen2_5_vl(billions: int, text: TextSize, vision_intermediate: int) -> PublishedSize:
    vision = VisionSize(32, 1280, vision_intermediate, full_attention=(7, 15, 23, 31))
    name, licence = f"Qwen/Qwen2.5-VL-{billions}B-Instruct", QWEN2_5_LICENCES.get(billions, APACHE)
    return PublishedSize(QWEN2_5_VL, f"{billions}b", name, licence, text, vision)


def _qwen3_vl(billions: int, text: TextSize, vision: VisionSize) -> PublishedSize:
    return PublishedSize(QWEN3_VL, f"{billions}b", f"Qwen/Qwen3-VL-{billions}B-Instruct", APACHE, text, vision)


SMALL_TOWER = VisionSize(24, 1024, 4096, deepstack=(5, 11, 17))
LARGE_TOWER = VisionSize(27, 1152, 4304, deepstack=(8, 16, 24))
SIZES = (
    _qwen2_5_vl(3, TextSize(36, 2048, 11008, 16, 2, 151_936, is_tied=True), 3420),
    _qwen2_5_vl(7, TextSize(28, 3584, 18944, 28, 4, 152_064, is_tied=False), 3420),
    _qwen2_5_vl(32, TextSize(64, 5120, 27648, 40, 8, 152_064, is_tied=False), 3456),
    _qwen2_5_vl(72, TextSize(80, 8192, 29568, 64, 8, 152_064, is_tied=False), 3456),
    _qwen3_vl(2, TextSize(28, 2048, 6144, 16, 8, 151_936, is_tied=True), SMALL_TOWER),
    _qwen3_vl(4, TextSize(36, 2560, 9728, 32, 8, 151_936, is_tied=True), SMALL_TOWER),
    _qwen3_vl(8, TextSize(36, 4096, 12288, 32, 8, 151_936, is_tied=False), LARGE_TOWER),
    _qwen3_vl(32, TextSize(64, 5120, 25600, 64, 8, 151_936, is_tied=False), LARGE_TOWER),
)
BY_NAME: Mapping[tuple[str, str], PublishedSize] = {(size.family.model_type, size.name): size for size in SIZES}


def published_size(model_type: str, name: str) -> PublishedSize:
    """The size of a family by its name, such as "qwen3_vl", "4b".

    Raises:
        PolicyFilesError: there is none; says which there are.
    """
    found = BY_NAME.get((model_type, name.lower()))
    if found is None:
        known = ", ".join(f"{family} {size}" for family, size in BY_NAME)
        raise PolicyFilesError(f"no published size {model_type} {name}; there are {known}")
    return found


def published_as(path: str) -> PublishedSize | None:
    """The size that a folder's or a repository's name stands for: by the name alone; None if it is no published one.

    Thinking checkpoints have the shapes and the licence of their Instruct twins.
    """
    name = path.rstrip("/").rpartition("/")[2].replace("-Thinking", "-Instruct")
    return next((size for size in SIZES if size.repository.rpartition("/")[2] == name), None)
