"""Looking at a policy without training it: `dynframe parity` and `dynframe rollout`. Part of the composition root."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.rollout import Generate
from envs.tools.users import load_toolbox
from rl.config.errors import ConfigError, require
from rl.config.run import RunConfig
from rl.evaluation.forced_calls import CallForcing
from rl.evaluation.parity import CONTROL_FACTOR_BF16, ParityGates, ParityReport, measure_parity
from rl.policy.families import is_ours, read_config
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.run.initial_policy import cold_started_policy, initial_policy
from rl.run.preflight.rewards import require_rewards
from rl.run.prepare.episode_context import retrieval_rules
from rl.run.prepare.policy import local_folder, prepare_policy
from rl.run.prepare.tasks import prepare_tasks
from rl.run.reporter import with_tokens
from rl.run.workers import (
    cluster,
    spawn_rewards,
    start_rollout_runner,
    starting_rollouts,
)
from rl.tracking.records import records, write_records
from rl.trajectory import GrantedCall, TrajectoryGroup, VideoTask

log = logging.getLogger(__name__)

INSPECTION_STEP = -2  # its seeds never meet those of training or evaluation


def run_parity(config: RunConfig, console: Console, *, num_tasks: int, force_call: bool | None = None) -> ParityReport:
    """Roll out tasks with the engine in this process, score the same tokens with the learner's model, compare.

    Args:
        force_call: put a call where the policy writes none; None: where it was not trained here.
    Raises:
        ConfigError: no trajectory looked again, so that there is nothing to compare after an injection.
    """
    require(config.retrieval.max_calls > 0, "retrieval.max_calls is 0: parity compares what follows a look")
    policy_dir = initial_policy(config, console)
    forced = not is_trained_here(config) if force_call is None else force_call
    tasks = prepare_tasks(config, "held_out", console).tasks[:num_tasks]
    processor = Processor.from_pretrained(policy_dir, config.policy.scenes)
    runner = start_rollout_runner(config, policy_dir.absolute())
    try:
        generate = _forcing(runner.engine.generate, processor, config) if forced else None
        groups = asyncio.run(_two_turn_groups(runner, tasks, generate))
        if not groups:
            raise ConfigError(f"{policy_dir}: {_why_no_look(len(tasks), forced)}")
        report = measure_parity(
            runner.engine,
            load_policy(policy_dir, config.policy.scenes, config.policy.dtype).to(_learner_device(config)),
            processor,
            groups,
            temperature=config.rollout.temperature,
        )
    finally:
        runner.engine.close()
    print_parity(report, config, console)
    return report


def _forcing(generate: Generate, processor: Processor, config: RunConfig) -> CallForcing:
    try:
        return CallForcing(generate, processor, load_toolbox(retrieval_rules(config), processor))
    except ValueError as error:
        remedy = "compare a policy that calls them by itself (--no-force-call)"
        raise ConfigError(f"retrieval.tools: {error}; {remedy}") from error


def is_trained_here(config: RunConfig) -> bool:
    """Whether the policy has learned to ask for frames: by the supervised stage, or given as one of ours.

    Asked of a policy that is prepared: one on the hub is downloaded by then.
    """
    given = local_folder(config) if config.policy.path else None
    return config.cold_start.enabled or (given is not None and is_ours(read_config(given / "config.json")))


def run_rollout(
    config: RunConfig, console: Console, *, num_tasks: int, split: str, greedily: bool, out: Path | None
) -> None:
    """Roll out tasks through the same pools as training and show what the policy did."""
    if split not in ("train", "held_out"):
        raise ConfigError(f"--split must be train or held_out, got {split!r}")
    require_rewards(config)
    policy_dir = prepare_policy(config, console)  # a wrong path is refused before a clip is rendered
    tasks = prepare_tasks(config, split, console).tasks[:num_tasks]
    with cluster(config, policy_dir, console) as slots:
        if config.cold_start.enabled:
            policy_dir = cold_started_policy(config, policy_dir, slots, console)
        with starting_rollouts(config, policy_dir, slots, console) as rollouts:
            rewards = spawn_rewards(config, slots, rollouts)
        groups = rollouts.generate(tasks, step=INSPECTION_STEP, greedily=greedily)
        scored = with_tokens(rewards.score_all(groups, step=INSPECTION_STEP), rollouts.load)
    rolled_out = list(records(scored, Processor.from_pretrained(policy_dir, config.policy.scenes).pieces))
    for record in rolled_out:
        _print_record(record, console)
    if out is not None:
        write_records(out, rolled_out)
        console.print(f"{len(rolled_out)} records in {out}", highlight=False)


def _learner_device(config: RunConfig) -> str:
    """Where the learner would compute: the kernels compared must be those it trains with."""
    return "cuda" if config.placement.learner_gpus else "cpu"


def print_parity(report: ParityReport, config: RunConfig, console: Console) -> None:
    """The table: each segment's differences, each control's, and whether they pass."""
    table = Table(title=f"|engine - learner| log-prob, nat, {config.policy.dtype}", box=None, pad_edge=False)
    for heading in ("", "max", "mean", "spread", "tokens"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, found in report.segments.items():
        table.add_row(name, f"{found.max:.2e}", f"{found.mean:.2e}", f"{found.spread:.2f}", str(found.tokens))
    for name, value in report.controls.items():
        table.add_row(f"control: {name}", f"{value:.2e}")
    console.print(table)
    console.print(f"log-probs compared spread by {report.spread:.2f} nat (standard deviation)", highlight=False)
    for warning in report.warnings():
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    failures = parity_failures(report, config)
    console.print("\n".join(f"[red]failed:[/] {escape(failure)}" for failure in failures) or "[green]passed[/]")


def parity_failures(report: ParityReport, config: RunConfig) -> list[str]:
    """Why engine and learner may not be used together, by the limits of the policy's precision; empty if they may."""
    limits = config.parity
    if config.policy.dtype == "float32":
        return report.failures(ParityGates(limits.gate_nat, limits.gate_nat))
    return report.failures(ParityGates(limits.gate_bf16_nat, limits.gate_bf16_mean_nat, CONTROL_FACTOR_BF16))


async def _two_turn_groups(
    runner: Any, tasks: tuple[VideoTask, ...], generate: Generate | None
) -> list[TrajectoryGroup]:
    """Sampled groups with at least one granted retrieval each."""
    groups = await asyncio.gather(
        *(runner.roll_out(task, step=INSPECTION_STEP, greedily=False, generate=generate) for task in tasks)
    )
    return [group for group in groups if any(_looked(trajectory.calls) for trajectory in group.trajectories_G)]


def _why_no_look(num_tasks: int, forced: bool) -> str:
    said = f"no frames were granted in {num_tasks} tasks, so there is no second turn to compare; "
    if forced:
        return (
            f"{said}the forced calls found no room or no video (rollout.max_new_tokens, rollout.engine.max_model_len)"
        )
    return f"{said}put a call where the policy writes none (--force-call), or compare a cold-started policy"


def _looked(calls: tuple) -> bool:
    return any(isinstance(call, GrantedCall) for call in calls)


def _print_record(record: dict[str, Any], console: Console) -> None:
    task = record["task"]
    console.print(f"[bold]{escape(task['id'])} · sibling {record['sibling']}[/]")
    console.print(f"question: {escape(task['question'])}")
    console.print(
        f"reference: {escape(task['answer'])}  evidence: {task['evidence_s']} s at {task['evidence_fps']} fps"
    )
    console.print(f"policy: {escape(record['text'])}")
    for turn in record["turns"]:
        if turn["call"]:
            console.print(f"call: {escape(json.dumps(turn['call']))}")
        if turn["frames"]:
            console.print(f"frames: {turn['frames']['timestamps_s']} in scenes of {turn['frames']['scene_lengths']}")
    console.print(f"stop: {record['stop']}  rewards: {escape(json.dumps(record['rewards']))}")
