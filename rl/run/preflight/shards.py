"""Whether the policy can be cut over the GPUs of an engine, as vLLM cuts it when the engine starts."""

from __future__ import annotations

from collections.abc import Iterator

from rl.config.run import RunConfig
from rl.policy.structure import Language
from rl.run.preflight.findings import Finding, Level
from rl.run.preflight.memory import planned_structure

PADDED = 64  # vLLM pads the vocabulary to a multiple of it
MOST = 16  # GPUs of an engine that are suggested


def check_shards(config: RunConfig) -> list[Finding]:
    """Nothing for engines on one GPU each, and where nothing tells the shapes of the policy."""
    gpus = config.rollout.engine.tensor_parallel_size
    found = planned_structure(config) if gpus > 1 else None
    if found is None:
        return []
    if not (uncut := [*_uncut(found[0].language, gpus)]):
        return [Finding("engine shards", Level.OK, f"{gpus} GPUs per engine")]
    able = [str(n) for n in range(1, MOST + 1) if not [*_uncut(found[0].language, n)]]
    problem = f"rollout.engine.tensor_parallel_size={gpus}: {', '.join(uncut)} cannot be cut over {gpus} GPUs"
    return [Finding("engine shards", Level.FAILED, f"{problem}; what can be is {', '.join(able)}")]


def _uncut(language: Language, gpus: int) -> Iterator[str]:
    """What does not come out even."""
    if language.heads % gpus:
        yield f"{language.heads} attention heads"
    if language.kv_heads % gpus and gpus % language.kv_heads:  # fewer than GPUs are copied
        yield f"{language.kv_heads} heads of keys and values"
    if language.intermediate % gpus:
        yield f"an MLP of {language.intermediate}"
    if -(-language.vocab // PADDED) * PADDED % gpus:
        yield f"a vocabulary of {language.vocab}"
