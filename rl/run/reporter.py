"""What a run says while it goes on and at its end: metrics, records, a line per step; and when it must stop.

Part of the composition root.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from actors.cluster.metrics import RayMetricsSink
from actors.worker.memory import own_memory_mib
from rl.algorithm.advantages import Credit, rules_at
from rl.algorithm.batch import credit_metrics, learned_credit
from rl.checkpoint.store import CheckpointStore
from rl.config.file import to_dict, to_yaml
from rl.config.run import RunConfig
from rl.group_summary import LoadGroups, RemoteGroup
from rl.policy.processor import Processor
from rl.run.console.stages import say
from rl.run.console.step_line import Pace, step_line
from rl.tracking.backlog import Backlog
from rl.tracking.disk_space import disk_metrics
from rl.tracking.failures import FAILURES
from rl.tracking.faults import FAULTS
from rl.tracking.fingerprint import step_fingerprints
from rl.tracking.records import leading_groups, records, step_path, write_step
from rl.tracking.sinks import JsonlSink, MetricLog, Sink, TensorBoardSink, WandbSink
from rl.tracking.step_metrics import reward_metrics, rollout_metrics, staleness_metrics
from rl.tracking.summary import summarise
from rl.trajectory import LearnerUpdate, ScoredGroup, TrajectoryGroup

log = logging.getLogger(__name__)


class GateError(RuntimeError):
    """A run is stopped before it learns from what cannot be trusted; the message says what and why."""


class Reporter:
    """What is said after each step: metrics to sinks, trajectories to disk, a line of progress; and the parity gate."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        numbers: MetricLog,
        backlog: Backlog,
        progress: Progress,
        first: int,
        processor: Processor,
        load: LoadGroups,
    ) -> None:
        """
        Args:
            first: step of the run from which it goes on.
            load: fetches groups with their tokens; None: one that was lost with the node it lay on.
        """
        self._load = load
        self._config, self._run_dir, self._numbers, self._backlog = config, run_dir, numbers, backlog
        self._progress = progress
        self._rules = config.algorithm.advantage
        self._processor, self._pace = processor, Pace()
        self._bar: TaskID = progress.add_task("training", total=config.trainer.steps, completed=first)

    def step(
        self,
        step: int,
        scored: Sequence[ScoredGroup[RemoteGroup]],
        learned: LearnerUpdate,
        metrics: Mapping[str, float],
        weights: Mapping[str, str],
    ) -> None:
        """Report one step.

        Args:
            metrics: of the loop and of the other stages.
            weights: checksum of every parameter after the step, by name.
        Raises:
            GateError: engine and learner disagree on average by more than parity.abort_nat, or too many videos could
                not be read.
            UnwrittenError: too many steps in a row could not be written down.
        """
        pixels_per_token = (self._processor.geometry.patch * self._processor.geometry.merge) ** 2
        rolled = rollout_metrics([group.group for group in scored], pixels_per_token=pixels_per_token)
        rewards = reward_metrics(scored)
        sampled = rolled["rollout/sampled_tokens"] * sum(len(group.rewards_G) for group in scored)
        own = {
            "rollout/tokens_per_s": sampled / max(metrics["seconds/rollout"], 1e-9),
            "memory/driver": own_memory_mib(),
            **disk_metrics(self._run_dir),
        }
        rules = rules_at(self._rules, step)
        credit = credit_metrics(scored, rules)
        truncated = self._config.algorithm.loss.mask_truncated
        credit_PG = [learned_credit(group, rules, mask_truncated=truncated) for group in scored]
        learned_version = int(metrics["policy/version"]) - (learned.steps_taken > 0)  # it is that after the push
        stale = staleness_metrics(scored, credit_PG, learned_version)
        everything = {**rolled, **rewards, **credit, **stale, **own, **learned.metrics, **metrics}
        prints = step_fingerprints(scored, credit_PG, optimizer=learned.optimizer, weights=weights)
        self._numbers.write(step + 1, everything, prints)
        self._record(step, scored, learned, credit_PG)
        self._say(step + 1, everything)
        self._gate(step, everything)

    def _say(self, step: int, numbers: Mapping[str, float]) -> None:
        """A line per step: a bar alone says nothing in a job's log."""
        steps = self._config.trainer.steps
        eta_s = self._pace.step_done(numbers["seconds/step"]) * (steps - step)
        self._progress.update(self._bar, completed=step)
        line = step_line(step, steps, numbers, answer_terms=answer_terms(self._config), eta_s=eta_s)
        say(self._progress.console, line)

    def _record(
        self,
        step: int,
        scored: Sequence[ScoredGroup[RemoteGroup]],
        learned: LearnerUpdate,
        credit_PG: Sequence[Sequence[Credit]],
    ) -> None:
        """The step's first trajectories, whole groups first, with what was learned from them."""
        most = self._config.logging.trajectories_per_step
        count = leading_groups([one.group for one in scored], most)
        shown = with_tokens(scored[:count], self._load)
        every = records(shown, self._processor.pieces, credit_PG=credit_PG[:count], logprobs_PG=learned.logprobs_PG)
        keep_step(self._backlog, self._run_dir / "trajectories", step + 1, list(islice(every, most)))

    def _gate(self, step: int, metrics: Mapping[str, float]) -> None:
        limits = self._config.parity
        means = [value for name, value in metrics.items() if name.startswith("parity/mean")]
        if not all(mean <= limits.abort_nat for mean in means):  # so that NaN is no agreement
            raise GateError(
                f"step {step + 1}: engine and learner log-probs differ by {means} nat on average (parity.abort_nat="
                f"{limits.abort_nat:g}); run `dynframe parity` on this configuration"
            )
        worst = max((value for name, value in metrics.items() if name.startswith("parity/max")), default=0.0)
        if worst > limits.warn_nat:
            log.warning("step %d: engine and learner log-probs differ by up to %.2g nat", step + 1, worst)
        unreadable = metrics["rollout/video_errors"] / max(metrics["rollout/trajectories"], 1)
        if unreadable > self._config.scoring.max_failed_share:
            raise GateError(
                f"step {step + 1}: the videos of {unreadable:.0%} of the trajectories could not be read "
                f"(scoring.max_failed_share={self._config.scoring.max_failed_share:g}); {FAILURES} says which and why"
            )


def with_tokens(
    scored: Sequence[ScoredGroup[RemoteGroup]], load: LoadGroups
) -> list[ScoredGroup[TrajectoryGroup] | None]:
    """Scored groups with everything that was sampled, as records show them; None: lost."""
    return scored_again(scored, load([one.group for one in scored]))


def scored_again(
    scored: Sequence[ScoredGroup[RemoteGroup]], loaded: Sequence[TrajectoryGroup | None]
) -> list[ScoredGroup[TrajectoryGroup] | None]:
    """The same scores on what was loaded."""
    return [
        None if group is None else ScoredGroup(group, one.rewards_G) for group, one in zip(loaded, scored, strict=True)
    ]


def keep_step(backlog: Backlog, folder: Path, step: int, shown: Sequence[dict[str, Any]]) -> None:
    """Write the records of a step, or keep them until the disk takes them.

    Raises:
        UnwrittenError: too many steps in a row could not be written down.
    """
    backlog.write(step_path(folder, step), step, partial(write_step, folder, step, shown))


def answer_terms(config: RunConfig) -> list[str]:
    """Names of the reward terms that score the answer itself."""
    return [name for name, term in config.rewards.items() if term.fn == "answer"]


def make_sinks(
    config: RunConfig, run_dir: Path, backlog: Backlog, console: Console, *, keep_through_step: int
) -> list[Sink]:
    """metrics.jsonl and Ray's metrics always; TensorBoard and W&B as configured, the latter with a line of where."""
    lines = JsonlSink(run_dir, keep_through_step=keep_through_step, backlog=backlog)
    sinks: list[Sink] = [lines, RayMetricsSink(config.name)]
    if config.logging.tensorboard:
        sinks.append(TensorBoardSink(run_dir, keep_through_step=keep_through_step, config_yaml=to_yaml(config)))
    if config.logging.wandb != "disabled":
        wandb = WandbSink(
            run_dir,
            mode=config.logging.wandb,
            project=config.logging.wandb_project,
            name=config.name,
            config=to_dict(config),
        )
        say(console, f"W&B: {wandb.place}")
        sinks.append(wandb)
    return sinks


def conclude(run_dir: Path, console: Console) -> dict[str, Any]:
    """Write summary.json and print what was learned, what was recovered from on the way, and where the run lies."""
    summary = summarise(run_dir)
    best = CheckpointStore(run_dir).best_score()
    if best is not None:
        summary["best"] = {"step": best[0], **asdict(best[1])}
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    took = f"{summary['steps']} steps in {summary['seconds']:.0f} s"
    if summary["held_out"]:
        console.print(_held_out_table(summary["held_out"], title=took))
    else:
        console.print(f"{took}; no held-out tasks were evaluated (trainer.eval_tasks=0)", highlight=False)
    if best is not None:
        console.print(f"best checkpoint: step {best[0]}, {best[1].metric} {best[1].value:.3f}", highlight=False)
    if faults := summary["faults"]:
        counted = ", ".join(f"{count} {kind}" for kind, count in faults.items())
        console.print(f"faults recovered: {counted} ({FAULTS})", markup=False, highlight=False)
    console.print(f"metrics, trajectories and checkpoints: {run_dir}", highlight=False)
    return summary


def _held_out_table(held_out: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """What the policy was worth before and after, where it was evaluated."""
    table = Table(title=title, box=None, pad_edge=False)
    for heading in ("", *held_out):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, name in (
        ("held-out loss, nat per token", "nll"),
        ("held-out reward, retrieval", "reward_sampling"),
        ("held-out reward, answer", "reward_reasoning"),
        ("held-out answer accuracy", "accuracy"),
        ("share of trajectories that look again", "granted_calls"),
        ("frames retrieved per trajectory", "frames"),
    ):
        values = [evaluation.get(name) for evaluation in held_out.values()]
        if any(value is not None for value in values):  # a reward without the one role or the other
            table.add_row(label, *("–" if value is None else f"{value:.3f}" for value in values))
    return table
