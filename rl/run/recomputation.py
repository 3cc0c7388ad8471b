"""learner.activation_checkpointing=auto: decided when a run begins, and kept when it goes on.

What is recomputed has the bits of what is kept where kernels are deterministic, so another choice is no other
experiment; but nothing may make a run slower or change its kernels from one attempt to the next without being told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl.checkpoint.checkpoint import Checkpoint
from rl.config.file import stored_settings
from rl.config.learner import AUTO, RECOMPUTED
from rl.config.run import RunConfig
from rl.memory_plan.plan import memory_plan, recomputing
from rl.policy.structure import structure_of
from rl.run.preflight.memory import hardware_of

log = logging.getLogger(__name__)


def with_recomputation(
    config: RunConfig, policy_dir: Path, found: Checkpoint | None = None, say: Callable[[str], None] = log.info
) -> RunConfig:
    """The configuration with what is recomputed, where memory decides it: as before a checkpoint, if learner ranks fit
    their GPUs that way here too; else the cheapest with which they do.

    Args:
        found: the checkpoint that the run goes on from.
        say: takes a line for the user.
    """
    if config.learner.activation_checkpointing != AUTO:
        return config
    structure, hardware = structure_of(policy_dir, config.policy), hardware_of(config)
    settings = stored_settings(found.config_yaml, f"{found.folder}/config.yaml") if found else {}
    before = as_before(config, settings)
    kept = before.learner.activation_checkpointing
    if kept != AUTO and memory_plan(before, structure, hardware).learners_fit:
        return before
    chosen = memory_plan(config, structure, hardware).recomputed
    if kept not in (AUTO, chosen):
        say(f"activations recomputed: {chosen}; {kept}, as before {found.folder.name}, does not fit these GPUs")
    elif config.placement.learner_gpus:
        say(f"activations recomputed: {chosen} (learner.activation_checkpointing=auto)")
    return recomputing(config, chosen)


def as_before(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with what a checkpoint's settings say instead of auto, where they say it and it can still be.

    Args:
        settings: of its config.yaml, under the names of today.
    """
    learner = settings.get("learner")
    before = learner.get("activation_checkpointing") if isinstance(learner, Mapping) else None
    if config.learner.activation_checkpointing != AUTO or before not in RECOMPUTED:
        return config
    if before == "vision" and (config.learner.freeze_vision or config.policy.lora.freezes_tower):
        return config
    return recomputing(config, before)
