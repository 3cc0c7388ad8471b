"""The engine's weights, in place: overwritten, digested and counted by a vLLM worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from rl.policy.batch_invariant import RowPadding
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
        """sha256 of the bytes of live parameters, by Hugging Face name."""
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


def live_tensor(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The part of the model's parameters that a Hugging Face name stands for: fused ones sliced, padding rows cut.

    Raises:
        KeyError: no such parameter.
        ValueError: parameters are spread over several workers.
    """
    path, _, leaf = model.hf_to_vllm_mapper.map_name(name).rpartition(".")
    parent, _, last = path.rpartition(".")
    fused, part = FUSED.get(last, (last, None))
    try:
        module = model.get_submodule(f"{parent}.{fused}")
        parameter = module.get_parameter(leaf)
    except AttributeError as error:
        raise KeyError(f"the engine's model has no parameter {name!r}") from error
    if getattr(module, "tp_size", 1) > 1:
        raise ValueError(f"{name}: cannot be read back, it is spread over {module.tp_size} workers")
    if part is not None:
        return parameter.data.split(module.output_partition_sizes)[part]
    rows = getattr(module, "org_vocab_size", len(parameter))
    return parameter.data[:rows]


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes, row-major."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
