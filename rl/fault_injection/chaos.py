"""`dynframe chaos`: faults are injected into a real run at random times, and what must hold of it then is checked.

Part of the composition root. The run is a process of its own, launched with the same command as often as it takes. When
the time is over it is stopped, launched again for two more steps, and must end with exit code 0. With a reference, a
run without faults follows, and every step must be the same.

With nodes the run gets a cluster of machines of its own, made of namespaces, and these are struck, too.

In a folder beside the configured run: chaos.jsonl (every injection), launches.jsonl (every launch and its end),
output.log, and the run itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.reward import GRACE_S
from actors.worker.waiting import COLLECT_S
from rl.config.errors import ConfigError
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.fault_injection.artifacts import Rules, read_artifacts
from rl.fault_injection.cluster_under_test import LOST_AFTER_S, ClusterUnderTest, disk_of_its_own
from rl.fault_injection.experiment import RunUnderTest, print_line
from rl.fault_injection.invariants import check_invariants, matches_reference
from rl.fault_injection.machines import why_not
from rl.fault_injection.recovery import recoveries
from rl.fault_injection.result import ExperimentResult, print_result
from rl.fault_injection.run_process import folder_beside_runs
from rl.fault_injection.schedule import FAULT_TYPES, WITHOUT_NODES, schedule
from rl.run.attempt import task_stream
from rl.run.preflight.check import preflight
from rl.run.prepare.tasks import prepare_tasks
from rl.run.resume import config_changes

ENDLESS = 100_000  # steps: more than there is time for
MORE_STEPS = 2  # after the last fault, to the end
MASKS_REWARDS = (  # costs trajectories their rewards, by design: what follows is another run
    *("reward_stopped", "node_killed", "node_network_slow", "object_store_full"),
)
SHORT_DEADLINES = {  # in place of the defaults: every hang waits for one
    "video.decode_stall_timeout_s": 10.0,
    "rollout.stall_timeout_s": 30.0,
    "learner.timeout_s": 60.0,
    "weight_sync.timeout_s": 30.0,
    "scoring.timeout_s": 5.0,
}


@dataclass(frozen=True, slots=True)
class Experiment:
    """Which faults are injected into a run, and for how long."""

    minutes: float
    seed: int
    every_s: float  # mean seconds between two faults
    fault_types: tuple[str, ...] = WITHOUT_NODES
    reference: bool = False  # compare with a run without faults
    timeout_s: float = 1800.0  # without a step: the run counts as hung
    nodes: int = 0  # that the run has, beside the driver's; 0: it runs on this machine


def run_chaos(config: RunConfig, experiment: Experiment, console: Console) -> ExperimentResult:
    """Inject faults into a run, let it finish, and check the invariants; prints what happens and the result.

    Raises:
        ConfigError: the configuration cannot work here, or there is no such fault type.
    """
    preflight(config)
    alone = [name for name in experiment.fault_types if name in FAULT_TYPES and FAULT_TYPES[name].needs_nodes]
    if alone and not experiment.nodes:
        raise ConfigError(f"command line: --only: {', '.join(alone)}: only a cluster has that; say --nodes 2 or more")
    if experiment.nodes and (reason := why_not()):
        raise ConfigError(f"command line: --nodes: no machines of namespaces can be made here: {reason}")
    allowed = [name for name in experiment.fault_types if not (experiment.reference and name in MASKS_REWARDS)]
    plan = schedule(experiment.seed, experiment.every_s, allowed)
    first = next(plan)  # refuses unknown fault types before anything is written
    home = folder_beside_runs(config.output_dir, f"chaos-{config.name}-")
    declared = chaos_config(config, output_dir=home / "runs" if experiment.nodes else home)
    print_line(console, f"chaos: {home}")
    for change in config_changes(to_dict(config), to_dict(declared), meaning=()):
        print_line(console, f"  {change}")
    rules = rules_of(declared, task_stream(prepare_tasks(declared, "train", console).tasks, declared))
    with contextlib.ExitStack() as stack:
        cluster = None
        if experiment.nodes:
            cluster = ClusterUnderTest(declared, experiment.nodes)
            stack.enter_context(disk_of_its_own(Path(declared.output_dir)))
        run = RunUnderTest(declared, home, console, rules, experiment.timeout_s, cluster)
        run.inject_for(experiment.minutes * 60, chain([first], plan))
        reached = run.steps_done
        if run.is_alive:
            run.finish(reached + MORE_STEPS)
    artifacts = read_artifacts(home, Path(declared.output_dir) / declared.name)
    violations = check_invariants(artifacts, rules, run.steps_done)
    if experiment.reference and run.is_alive:
        violations["reference"] = matches_reference(artifacts, run.reference(reached), reached)
    matched = tuple(recoveries(artifacts, rules))
    result = ExperimentResult(home, run.seconds, run.steps_done, artifacts, matched, violations)
    print_result(result, console)
    return result


def chaos_config(config: RunConfig, *, output_dir: Path) -> RunConfig:
    """The configuration of the run under test: endless, saved after every step, every trajectory recorded."""
    declared = replace(
        config,
        output_dir=str(output_dir),
        resume="auto",
        video=replace(config.video, decode_workers=max(1, config.video.decode_workers)),
        scoring=replace(config.scoring, max_failed_share=1.0),
        algorithm=replace(config.algorithm, dynamic_sampling=0),  # or the stream does not say which tasks are left
        learner=replace(
            config.learner,
            max_rebuilds=1_000_000,
            optimizer=replace(config.learner.optimizer, warmup_fraction=0.0),  # of endless steps
        ),
        trainer=replace(
            config.trainer,
            steps=max(ENDLESS, config.trainer.steps),
            save_every=1,
            keep_checkpoints=max(3, config.trainer.keep_checkpoints),
            max_failed_saves=1_000_000,
            remote="",
            eval_every=0,
            eval_tasks=0,
        ),
        logging=replace(
            config.logging,
            tensorboard=False,
            wandb="disabled",
            trajectories_per_step=config.rollout.group_size * config.rollout.tasks_per_step,
        ),
        placement=replace(config.placement, dashboard=False),
    )
    for key, seconds in SHORT_DEADLINES.items():
        declared = _with_default_shortened(declared, key, seconds)
    return declared


def rules_of(config: RunConfig, tasks_for: Callable[[int, int], Sequence[Any]]) -> Rules:
    """What a run of this configuration promises."""
    return Rules(
        tasks_for=tasks_for,
        group_size=config.rollout.group_size,
        warn_nat=config.parity.warn_nat,
        stop_grace_s=config.trainer.stop_grace_s,
        hung_s={
            "rollout": config.rollout.stall_timeout_s + max(config.weight_sync.timeout_s, COLLECT_S),
            "reward": config.scoring.timeout_s * config.rollout.group_size + GRACE_S,
            "learner": config.learner.timeout_s,
        },
        node_lost_s=LOST_AFTER_S,
        max_lag=config.trainer.max_policy_lag,
    )


def _with_default_shortened(config: RunConfig, key: str, seconds: float) -> RunConfig:
    """A deadline shortened, unless the configuration sets it to something other than its default."""
    section, name = key.split(".")
    declared = getattr(config, section)
    default = next(one.default for one in fields(type(declared)) if one.name == name)
    if getattr(declared, name) != default:
        return config
    if name == "stall_timeout_s":
        seconds = max(seconds, config.video.decode_stall_timeout_s + 10.0)
    return replace(config, **{section: replace(declared, **{name: seconds})})
