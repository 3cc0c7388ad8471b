"""The engine's weights, in place: overwritten, digested and counted by a vLLM worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from rl.policy.batch_invariant import RowPadding
from rl.policy.profiler import SUFFIX, Profiler
from rl.policy.vllm.probe import choose_padding, varying_kernels

FUSED = {  # Hugging Face's name -> vLLM's fused parameter, and which part of it
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


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

    def digest_weights(self, names: Sequence[str]) -> dict[str, str]:
        """sha256 of the bytes of live parameters, by Hugging Face name; every worker of the engine takes part.

        A parameter that is cut over several workers is put together on each of them, from shards that hold its own: all
        their digests are right only if every shard is.
        """
        return {name: tensor_digest(live_tensor(self.get_model(), name)) for name in names}

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
    dim: int | None = None  # along which the parameter is cut; None: it is whole
    replicas: int = 1  # neighbouring workers that hold the same part
    rows: int | None = None  # of the whole parameter, where there is padding behind them


def live_tensor(model: nn.Module, name: str) -> Tensor:
    """The part of the model's parameters that a Hugging Face name stands for: fused ones sliced, padding rows cut.

    Where the engine has several workers it is put together from all their shards, on the CPU: a collective.

    Raises:
        KeyError: no such parameter.
    """
    shard = live_shard(model, name)
    if shard.dim is None:
        return shard.tensor[: shard.rows]
    return put_together(gathered(shard.tensor), shard, get_tp_group().rank_in_group)


def live_shard(model: nn.Module, name: str) -> Shard:
    """This worker's part of a parameter, by its Hugging Face name.

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
    if getattr(module, "tp_size", 1) == 1:
        return Shard(tensor, rows=rows)
    if isinstance(module, RowParallelLinear):
        return Shard(tensor, 1 if leaf == "weight" else None)  # its bias is whole
    if isinstance(module, ColumnParallelLinear):
        # with fewer heads of keys and values than workers, neighbours hold the same one
        return Shard(tensor, 0, module.num_kv_head_replicas if last in ("k_proj", "v_proj") else 1)
    return Shard(tensor, 0 if isinstance(module, VocabParallelEmbedding) else None, rows=rows)


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensors of all the engine's workers, in order, on the CPU: a GPU has no room for a second embedding."""
    group = get_tp_group()
    own = tensor.detach().cpu().contiguous()
    parts = [torch.empty_like(own) for _ in range(group.world_size)]
    flat = [part.view(-1).view(torch.uint8) for part in (*parts, own)]  # gloo does not know every type
    dist.all_gather(flat[:-1], flat[-1], group=group.cpu_group)
    return parts


def put_together(parts: Sequence[Tensor], shard: Shard, rank: int) -> Tensor:
    """The whole parameter; of replicas the one that `rank` holds, or that has the same place among its neighbours."""
    return torch.cat(list(parts[rank % shard.replicas :: shard.replicas]), dim=shard.dim)[: shard.rows]


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, row-major."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
