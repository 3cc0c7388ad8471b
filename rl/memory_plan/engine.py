"""What a vLLM engine takes: weights, KV cache, and what it measures for itself when it starts.

On a GPU an engine fills its share (rollout.engine.gpu_memory_utilization) whatever it needs: the KV cache gets what
weights and the measured peak leave, and must hold one trajectory of the longest context.

Legend: b bytes of a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rl.config.rollout import EngineConfig
from rl.config.run import RunConfig
from rl.memory_plan.activations import block_working
from rl.memory_plan.record import GIB
from rl.memory_plan.trajectory import longest_trajectory
from rl.policy.structure import Language, Structure

MIN_BATCHED_TOKENS = 8192  # prompts prefilled together, as actors.engine.settings has it
EMBEDDED_AT_ONCE = 2**16  # patches, as rl.policy.vllm.scene_engine has it
FLOAT = 4
CONTEXT_BYTES = 0.9 * 2**30  # CUDA's context, kernels and NCCL of a process
GRAPHS_BYTES = 1.0 * 2**30  # CUDA graphs of decoding, where there are any


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes on one GPU of an engine, or in its process on the CPU."""

    weights: float
    working: float  # at its worst: a whole prompt prefilled, a video as long as the context encoded
    graphs: float
    context: float
    kv_per_token: float

    @property
    def fixed(self) -> float:
        """All but the KV cache."""
        return self.weights + self.working + self.graphs + self.context


def engine_memory(structure: Structure, engine: EngineConfig, itemsize: int, *, cuda: bool) -> EngineMemory:
    """Of one GPU of the engine; the tower is whole on each of them.

    Args:
        itemsize: b.
    """
    language, tower = structure.language, structure.tower
    split = engine.tensor_parallel_size if cuda else 1
    return EngineMemory(
        weights=(language.parameters / split + tower.parameters) * itemsize,
        working=_prefill(structure, engine, itemsize, split),
        graphs=GRAPHS_BYTES if cuda and not engine.enforce_eager else 0,
        context=CONTEXT_BYTES if cuda else 0,
        kv_per_token=kv_bytes(language, itemsize, split),
    )


def with_sequences(config: RunConfig, structure: Structure, itemsize: int, gpu_gib: float) -> RunConfig:
    """The configuration with the trajectories that an engine decodes at once, where it leaves them to memory
    (rollout.engine.max_num_seqs=0): as many of the longest as the KV cache holds, and no more than a step brings it.

    Siblings share what they begin with. vLLM computes again what does not fit after all, so the longest will do.

    Args:
        itemsize: b.
        gpu_gib: of a GPU; 0: it is not known, or vLLM computes on the CPU.
    """
    rollout, engine = config.rollout, config.rollout.engine
    if engine.max_num_seqs:
        return config
    most = math.ceil(rollout.tasks_per_step / rollout.num_workers) * rollout.group_size
    engine = replace(engine, max_num_seqs=most)
    memory = engine_memory(structure, engine, itemsize, cuda=bool(config.placement.rollout_gpus))
    cache = float(engine.kv_cache_bytes)
    if config.placement.rollout_gpus:
        cache = engine.gpu_memory_utilization * gpu_gib * GIB - memory.fixed if gpu_gib else math.inf
    longest = longest_trajectory(config, structure.tower)
    shared = longest.visual_tokens * longest.coarse_values / max(1, longest.coarse_values + longest.look_values)
    own = longest.tokens - shared * (1 - 1 / rollout.group_size)
    held = cache / (memory.kv_per_token * own)
    engine = replace(engine, max_num_seqs=max(1, int(min(held, most))))
    return replace(config, rollout=replace(rollout, engine=engine))


def kv_bytes(language: Language, itemsize: int, split: int = 1) -> float:
    """Keys and values of one token on one GPU; with fewer KV heads than GPUs each has one of them."""
    heads = max(1, language.kv_heads // split)
    return 2 * language.layers * heads * language.head_dim * itemsize


def _prefill(structure: Structure, engine: EngineConfig, itemsize: int, split: int) -> float:
    language, tower = structure.language, structure.tower
    tokens = max(engine.max_model_len, MIN_BATCHED_TOKENS)
    patches = engine.max_model_len * tower.merge**2
    encoded = engine.max_model_len * language.hidden * (1 + tower.levels) * itemsize  # kept: the encoder's cache
    pixels = tower.patch_values * (patches + min(patches, EMBEDDED_AT_ONCE) * (FLOAT + itemsize))
    encoding = max(pixels, patches * block_working(tower, itemsize)) + patches * tower.hidden * itemsize
    width = 2 * language.intermediate / split + 4 * language.hidden + language.query_width / split
    prefill = tokens * width * itemsize
    logits = engine.max_num_seqs * language.vocab * 3 * FLOAT
    return encoded + max(encoding, prefill + logits)
