"""What can be known to be wrong with a fine-tuning run before anything starts, cheap things first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.run.preflight.attempts import attempt
from rl.run.preflight.findings import Finding, Level, failed_details, on_one_line
from rl.run.preflight.machine import check_output, check_resources, require_gpus
from rl.run.preflight.memory import check_heads, check_plan, plan_memory, planned_parameters
from rl.run.preflight.policy import check_policy
from rl.run.prepare.conversations import prepare_examples, require_conversation_sources


def run_finetune_checks(config: RunConfig, console: Console) -> list[Finding]:
    """Every finding, cheap ones first; one failure does not hide the next."""
    policy, parameters = check_policy(config)
    return [
        Finding("configuration", Level.OK, f"{config.name}: keys and ranges are valid, for `dynframe finetune`"),
        policy,
        check_output(config, parameters or planned_parameters(config)),
        *check_resources(config),
        *_memory(config),
        *attempt("finetune.sources", lambda: _sources(config, console)),
    ]


def preflight_finetune(config: RunConfig) -> None:
    """What a run looks at before any work: seconds, no torch, and no image or video opened.

    Raises:
        ConfigError: the policy or an annotation file cannot be used, the machine is too small, or the output cannot be
            written.
    """
    require_gpus(config)
    policy, parameters = check_policy(config)
    if policy.level is Level.FAILED:
        raise ConfigError(policy.detail)
    if failed := failed_details([check_output(config, parameters or planned_parameters(config)), *_memory(config)]):
        raise ConfigError(failed)


def without_engines(config: RunConfig) -> RunConfig:
    """The configuration of a run that has learners only: nothing of it is for rollouts and rewards."""
    return replace(config, rewards={}, placement=replace(config.placement, rollout_gpus=0.0, share_gpus="split"))


def _memory(config: RunConfig) -> Iterator[Finding]:
    """Of every GPU and of the node."""
    try:
        yield from [*check_heads(config), *check_plan(config, plan_memory(config))]
    except ConfigError as error:
        yield Finding("memory", Level.FAILED, on_one_line(error))


def _sources(config: RunConfig, console: Console) -> Finding:
    require_conversation_sources(config)
    found = prepare_examples(config, console)
    detail = f"{len(found.train):,} examples, {len(found.held_out):,} held out; {found.rejected:,} rows left out"
    return Finding("finetune.sources", Level.NOTE if found.rejected else Level.OK, detail)
