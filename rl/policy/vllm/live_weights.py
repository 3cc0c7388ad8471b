"""The engine's weights, in place: overwritten, summed and counted by a vLLM worker."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from rl.policy.batch_invariant import RowPadding
from rl.policy.profiler import SUFFIX, Profiler
from rl.policy.vllm.probe import choose_padding, varying_kernels
from rl.weight_transfer.checksum import checksum, shard_checksum

FUSED = {  # Hugging Face's name -> vLLM's fused parameter, and which part of it
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
WHOLE = 0  # in the place of a shard's number of replicas: every worker has all of the parameter

ShardSums = dict[str, tuple[int, int, int]]  # name -> replicas of a worker's shard or WHOLE, and its two sums

warnings.filterwarnings("ignore", "The given buffer is not writable")  # weights are read where they lie, not changed


class LiveWeights:
    """Reads and writes the policy's parameters in a vLLM worker; vLLM mixes it into its own worker class."""

    def put_weights(self, flat: Sequence[tuple[str, str, Sequence[int], bytes]]) -> None:
        """Overwrite parameters in place.

        Args:
            flat: Hugging Face name, dtype, shape and bytes of each.
        Raises:
            ValueError: a name or shape is not the model's.
        """
        tensors = (torch.frombuffer(data, dtype=getattr(torch, dtype)).view(*shape) for _, dtype, shape, data in flat)
        self.get_model().load_weights(zip((name for name, *_ in flat), tensors, strict=True))

    def map_weights(self, path: str, flat: Sequence[tuple[str, str, Sequence[int], int, int]]) -> None:
        """Overwrite parameters in place with what lies in a file of another process's memory.

        Args:
            path: of the file.
            flat: Hugging Face name, dtype, shape, and the range of bytes of each.
        Raises:
            ValueError: a name or shape is not the model's.
        """
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        data = memoryview(mapped)  # unmapped with the last tensor that lies in it
        self.put_weights([(name, dtype, shape, data[start:end]) for name, dtype, shape, start, end in flat])

    def sum_weights(self, names: Sequence[str]) -> ShardSums:
        """What this worker's shards of live parameters add to their checksums, by Hugging Face name.

        Raises:
            KeyError: no such parameter.
        """
        model, rank = self.get_model(), get_tp_group().rank_in_group
        shards = [live_shard(model, name) for name in names]
        sums = [shard_sums(shard, rank) for shard in shards]
        values = torch.stack(sums).tolist() if sums else []
        return {name: (shard.kind, *two) for name, shard, two in zip(names, shards, values, strict=True)}

    @torch.no_grad()
    def spoil_weights(self) -> None:
        """Put NaN in the place of every parameter, as memory that was given back holds anything."""
        for parameter in self.get_model().parameters():
            parameter.fill_(torch.nan)

    def sent_checksums(self) -> dict[str, str]:
        """What the sender of the last weights over a link holds, by Hugging Face name."""
        return self.weight_transfer_engine.sent_checksums

    def make_batch_invariant(self, paddings: Sequence[RowPadding]) -> tuple[str, list[str]]:
        """Choose how the rows of products are padded; no request may be running.

        Returns:
            The first of `paddings` that is enough, in words, and the kernels that depend on the batch even so.
        """
        model = self.get_model()
        varying = choose_padding(model, model.scene_engine.product, paddings)
        builders = [group.get_metadata_builder() for groups in self.model_runner.attn_groups for group in groups]
        varying += varying_kernels(model, builders, self.cache_config.block_size)
        return str(model.scene_engine.product.padding), varying

    def count_encoded_items(self) -> int:
        """Video items the vision tower has encoded since the start, the memory measurement's included."""
        return self.get_model().scene_engine.encoded_items

    def device_memory_mib(self) -> float:
        """What tensors take of this worker's accelerator, the KV cache included.

        What PyTorch keeps beyond them comes and goes with the largest video encoded: it would look like a leak.
        """
        return torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0

    def begin_profile(self) -> None:
        """Begin to record what this worker computes."""
        self._profiler_of_ours = Profiler()

    def write_profile(self, path: str) -> str:
        """Write what has been recorded since `begin_profile`; returns the file's name.

        Args:
            path: of worker 0; the others' names say which they are.
        """
        rank, given = get_tp_group().rank_in_group, Path(path)
        written = given.with_name(f"{given.name.removesuffix(SUFFIX)}.gpu{rank}{SUFFIX}") if rank else given
        self._profiler_of_ours.write(written)
        del self._profiler_of_ours
        return written.name


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a parameter that this worker of an engine holds."""

    tensor: Tensor
    shape: tuple[int, ...]  # of the whole parameter, without the padding rows that some have behind them
    dim: int | None = None  # along which the parameter is cut; None: it is whole
    replicas: int = 1  # neighbouring workers that hold the same part

    @property
    def kind(self) -> int:
        """The number of replicas, or WHOLE."""
        return WHOLE if self.dim is None else self.replicas


def live_shard(model: nn.Module, name: str) -> Shard:
    """This worker's part of a parameter, by its Hugging Face name: fused ones sliced.

    Raises:
        KeyError: no such parameter.
    """
    path, _, leaf = model.hf_to_vllm_mapper.map_name(name).rpartition(".")
    parent, _, last = path.rpartition(".")
    fused, part = FUSED.get(last, (last, None))
    try:
        module = model.get_submodule(f"{parent}.{fused}")
        parameter = module.get_parameter(leaf)
    except AttributeError as error:
        raise KeyError(f"the engine's model has no parameter {name!r}") from error
    tensor = parameter.data if part is None else parameter.data.split(module.output_partition_sizes)[part]
    rows = module.org_vocab_size if isinstance(module, VocabParallelEmbedding) else None
    workers = getattr(module, "tp_size", 1)
    dim, replicas = _cut(module, leaf, last) if workers > 1 else (None, 1)
    shape = list(tensor.shape)
    if dim is not None:
        shape[dim] *= workers // replicas
    if rows is not None:
        shape[0] = rows
    return Shard(tensor, tuple(shape), dim, replicas)


def shard_sums(shard: Shard, rank: int) -> Tensor:
    """What the shard of the worker of this rank adds to the parameter's checksum, two integers."""
    if shard.dim is None:
        return checksum(shard.tensor[: shard.shape[0]] if shard.shape else shard.tensor)
    start = rank // shard.replicas * shard.tensor.shape[shard.dim]
    return shard_checksum(shard.tensor, shard.shape, shard.dim, start)


def add_up(sums_R: Sequence[tuple[int, int, int]]) -> Iterable[tuple[int, int]]:
    """The checksums of one parameter from what every worker of an engine has summed, by rank.

    Returns:
        Distinct ones: one, unless workers that should hold the same do not.
    """
    replicas = sums_R[0][0] or len(sums_R)  # WHOLE: each has everything
    parts = [sums_R[place::replicas] for place in range(replicas)]  # by place among the neighbours that hold the same
    return dict.fromkeys(
        (sum(plain for _, plain, _ in part) % 2**64, sum(placed for *_, placed in part) % 2**64) for part in parts
    )


def _cut(module: nn.Module, leaf: str, last: str) -> tuple[int | None, int]:
    """Along which dimension vLLM has cut a module's parameter, and how many neighbours hold the same part."""
    if isinstance(module, RowParallelLinear):
        return (1 if leaf == "weight" else None), 1  # its bias is whole
    if isinstance(module, ColumnParallelLinear):
        # with fewer heads of keys and values than workers, neighbours hold the same one
        return 0, module.num_kv_head_replicas if last in ("k_proj", "v_proj") else 1
    return (0 if isinstance(module, VocabParallelEmbedding) else None), 1
