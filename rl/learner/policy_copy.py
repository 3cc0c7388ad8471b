"""The policy in training copied, and written as a policy folder whose weights' files are dealt over the ranks.

Every rank copies and writes the files that are its own: a copy of the whole policy on one rank would take the memory of
that rank's host once more. A small policy is one file, of rank 0.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from rl.learner.rank_files import Layout
from rl.policy.weight_files import FLOATS, SINGLE, TensorEntry, write_index

FILE_BYTES = 2 * 10**9  # of weights in a file, at most, but for one tensor that is larger

SPELLED = {getattr(torch, ours): stored for stored, ours in FLOATS.items()}  # torch's types as files spell them

Placed = dict[str, dict[str, TensorEntry]]  # file -> the weights in it


@dataclass(frozen=True, slots=True, eq=False)
class PolicyCopy:
    """A rank's part of the policy as it was when it was copied."""

    weights: Mapping[str, Mapping[str, Tensor]]  # of this rank: file -> its weights, on the CPU
    placed: Placed | None  # all files, where this rank writes what is not weights
    write_rest: Callable[[Path], None]  # configuration, tokenizer, chat template

    def write(self, folder: Path) -> list[Path]:
        """Write this rank's files into `folder`, which is made if needed; from any thread. Returns them."""
        folder.mkdir(parents=True, exist_ok=True)
        for file, weights in self.weights.items():
            save_file(dict(weights), folder / file, metadata={"format": "pt"})
        written = [folder / file for file in self.weights]
        if self.placed is not None:
            written += self._write_rest(folder, self.placed)
        return written

    def _write_rest(self, folder: Path, placed: Placed) -> list[Path]:
        """What is not weights, made aside: other ranks write into `folder` meanwhile, under names of their own."""
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".rest.") as scratch:
            self.write_rest(Path(scratch))
            write_index(Path(scratch), placed)
            return [path.replace(folder / path.name) for path in sorted(Path(scratch).iterdir())]


def place_weights(whole: Mapping[str, tuple[Sequence[int], torch.dtype]], file_bytes: int = FILE_BYTES) -> Placed:
    """Which weights stand in which file of a policy folder, in the order given.

    Args:
        whole: shape and type of every weight, by name.
    """
    unread = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in whole.items()}
    split = split_torch_state_dict_into_shards(
        unread, filename_pattern=SINGLE.replace(".", "{suffix}."), max_shard_size=file_bytes
    )
    entries = {name: TensorEntry(SPELLED[tensor.dtype], tuple(tensor.shape)) for name, tensor in unread.items()}
    return {file: {name: entries[name] for name in names} for file, names in split.filename_to_tensors.items()}


def copy_policy(
    named_weights: Callable[..., Iterable[tuple[str, Tensor]]],
    placed: Placed,
    layout: Layout,
    write_rest: Callable[[Path], None],
) -> PolicyCopy:
    """Copy this rank's part of the weights; collective.

    Args:
        named_weights: gives whole weights one after the other, those `wanted` (TrainingEngine.named_weights).
    """
    mine = {file: dict[str, Tensor]() for file in list(placed)[layout.rank :: layout.world_size]}
    file_of = {name: file for file in mine for name in placed[file]}
    for name, tensor in named_weights(wanted=file_of):
        mine[file_of[name]][name] = tensor.to("cpu", copy=True).contiguous()
    return PolicyCopy(mine, placed if layout.rank == 0 else None, write_rest)
