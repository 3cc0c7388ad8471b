"""What a stock checkpoint becomes, planned from its headers alone: which tensor of ours is made of which of theirs.

Everything that a checkpoint can be refused for is found here, before a byte is written. A head that is tied to the
embedding is left out, even where the checkpoint ships a copy: engine and learner would not agree whether it is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from rl.config.policy import ScenesConfig
from rl.policy.chat_template import opens_thought
from rl.policy.configuration import own_configuration, read_configuration
from rl.policy.families import STOCK_KERNEL, Family, family_of, read_config
from rl.policy.geometry import Geometry, padded_vocab, require_explicit_clock
from rl.policy.given_folder import require_usable
from rl.policy.model import policy_class
from rl.policy.policy_folder import flexivideo_section
from rl.policy.processor import Processor
from rl.policy.token_ids import PolicyFilesError
from rl.policy.tokenizer_file import tagged_tokenizer
from rl.policy.weight_files import TensorEntry, read_rows, read_weights

RENAMES = ((r"^visual\.", "model.visual."), (r"^model\.(?!language_model\.|visual\.)", "model.language_model."))
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a stock checkpoint, and what becomes of it."""

    stock_name: str
    stock: TensorEntry
    ours: TensorEntry
    has_rows_per_token: bool  # rows for new tokens are added to it
    is_kernel: bool  # the patch kernel, expanded in time


@dataclass(frozen=True, slots=True)
class Conversion:
    """A stock checkpoint as a policy folder, before it is written."""

    source: Path
    family: Family
    scenes: ScenesConfig
    config: PreTrainedConfig  # of the policy
    tokenizer: Tokenizer  # with the tags
    new_ids: tuple[int, ...]  # of tags that the stock tokenizer has not
    files: Mapping[str, Mapping[str, Source]]  # by name of ours

    @property
    def nbytes(self) -> int:
        """Of the weights to be written."""
        return sum(tensor.ours.nbytes for tensors in self.files.values() for tensor in tensors.values())

    def processor(self) -> Processor:
        """The policy's processor, which needs no weights."""
        geometry = replace(Geometry.read(self.source), vocab_size=self.config.text_config.vocab_size)
        return Processor(self.tokenizer, geometry, self.scenes, self.source, opens_thought=opens_thought(self.source))


def plan_conversion(source: Path, scenes: ScenesConfig, tool_tags: Sequence[str] = ()) -> Conversion:
    """Look at a stock checkpoint and say what it becomes.

    Args:
        tool_tags: of tools beside `span_fps`, which become tokens too.
    Raises:
        PolicyFilesError: it cannot become a policy; names file, key or tensor, and what to do.
    """
    require_usable(source)
    family, stock_config = family_of(source), read_config(source / "config.json")
    require_explicit_clock(stock_config, family, source / "config.json")
    config = own_configuration(read_configuration(source).to_dict(), family)
    config.vision_config.flexivideo = flexivideo_section(scenes)
    config.architectures = [family.architecture]
    tokenizer, new_ids = tagged_tokenizer(source, stock_config, tool_tags)
    files = _named(source, family)
    if config.tie_word_embeddings:
        _leave_out_tied_head(source, files)
    files = {file: {name: _expanded(tensor, scenes) for name, tensor in found.items()} for file, found in files.items()}
    shapes = {name: (file, tensor.ours.shape) for file, found in files.items() for name, tensor in found.items()}
    _require_fit(source, family, config, shapes)
    rows = padded_vocab(max(config.text_config.vocab_size, tokenizer.get_vocab_size()))
    config.text_config.vocab_size = rows
    files = {file: {name: _with_rows(tensor, rows) for name, tensor in found.items()} for file, found in files.items()}
    return Conversion(source, family, scenes, config, tokenizer, tuple(new_ids), files)


def require_weights(folder: Path) -> None:
    """Refuse a folder of ours whose weights are not those that its config.json describes.

    Raises:
        PolicyFilesError: a tensor is missing, of another shape, or of no part of the model; names file and tensor.
    """
    found = read_weights(folder)
    shapes = {name: (file, entry.shape) for file, entries in found.items() for name, entry in entries.items()}
    _require_fit(folder, family_of(folder), read_configuration(folder), shapes)


def canonical_name(name: str) -> str:
    """The name transformers 5 gives a weight, whichever release wrote it."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _named(source: Path, family: Family) -> dict[str, dict[str, Source]]:
    """The checkpoint's tensors under our names."""
    files: dict[str, dict[str, Source]] = {}
    for file, entries in read_weights(source).items():
        for stock_name, entry in sorted(entries.items()):
            stock = canonical_name(stock_name)
            name, is_kernel = family.renames.get(stock, stock), stock == STOCK_KERNEL
            tensor = Source(stock_name, entry, entry, name in (EMBEDDING, HEAD), is_kernel)
            files.setdefault(file, {})[name] = tensor
    return files


def _leave_out_tied_head(source: Path, files: Mapping[str, dict[str, Source]]) -> None:
    """Leave out a head that is a copy of the embedding, and refuse one that is not."""
    places = {name: file for file, tensors in files.items() for name in tensors}
    if HEAD not in places or EMBEDDING not in places:
        return
    of_embedding = read_rows(source / places[EMBEDDING], files[places[EMBEDDING]][EMBEDDING].stock)
    of_head = read_rows(source / places[HEAD], files[places[HEAD]].pop(HEAD).stock)
    if any(one != other for one, other in zip_longest(of_embedding, of_head)):
        raise PolicyFilesError(
            f"{source / places[HEAD]}: {HEAD} is not the embedding, though config.json has tie_word_embeddings=true; "
            "set it to false if the head was trained by itself"
        )


def _expanded(tensor: Source, scenes: ScenesConfig) -> Source:
    if not tensor.is_kernel or scenes.mode == "fixed" or len(tensor.stock.shape) != 5:
        return tensor
    channels, colours, _, *patch = tensor.stock.shape
    return replace(tensor, ours=TensorEntry(tensor.stock.dtype, (channels, colours, scenes.init_frames, *patch)))


def _with_rows(tensor: Source, rows: int) -> Source:
    if not tensor.has_rows_per_token:
        return tensor
    return replace(tensor, ours=TensorEntry(tensor.stock.dtype, (rows, *tensor.stock.shape[1:])))


def _require_fit(
    folder: Path, family: Family, config: PreTrainedConfig, found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Refuse weights that are not exactly those of the model, by name and shape.

    Args:
        found: by name of ours, the file that holds a tensor, and its shape.
    """
    expected = _expected_shapes(family, config)
    absent = [name for name in expected if name not in found]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        tied = " (config.json has tie_word_embeddings=false)" if HEAD in absent else ""
        raise PolicyFilesError(
            f"{folder}: no tensor {absent[0]}{more} in its weights{tied}; download the checkpoint again, or its "
            "config.json is another's"
        )
    for name, (file, shape) in found.items():
        if name not in expected:
            raise PolicyFilesError(
                f"{folder / file}: {name} is of no part of the {family.model_type} that config.json describes: they "
                "are of different checkpoints"
            )
        if shape != expected[name]:
            raise PolicyFilesError(
                f"{folder / file}: {name} has shape {shape}, config.json asks for {expected[name]}: they are of "
                "different checkpoints"
            )


def _expected_shapes(family: Family, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = policy_class(family)(config)
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (name == HEAD and config.tie_word_embeddings)
    }
