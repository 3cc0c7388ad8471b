"""`dynframe chaos`: a real run that is struck by random faults again and again, and what must hold of it in the end.

Part of the composition root. The run is a process of its own, started with the same command as often as it takes. When
the time is over it is asked to stop, goes on for two more steps, and must end with exit code 0. With a reference, a run
that nothing happens to follows, and every step must be the same.

In a folder beside the configured run: chaos.jsonl (every strike), launches.jsonl (every start and its end), output.log,
and the run itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.reward import GRACE_S
from actors.waiting import COLLECT_S
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.fault_injection.experiment import Trial, say
from rl.fault_injection.invariants import (
    MENDED,
    Evidence,
    Launch,
    Mend,
    Rules,
    judge,
    mends,
    read_evidence,
    same_as,
    uninvited,
)
from rl.fault_injection.run_process import folder_beside_runs
from rl.fault_injection.schedule import KINDS, Due, schedule
from rl.run.attempt import task_stream
from rl.run.check import preflight
from rl.run.prepare import prepare_tasks
from rl.run.resume import config_changes

ENDLESS = 100_000  # steps: more than there is time for
MORE_STEPS = 2  # after the last fault, to the end
MASKING = ("reward_stopped",)  # costs trajectories their verdict, by design: what follows is another run
SHORT = {  # deadlines that are shortened where the configuration leaves them as they come: every hang waits for one
    "video.decode_timeout_s": 10.0,
    "rollout.stall_timeout_s": 30.0,
    "learner.timeout_s": 60.0,
    "weight_sync.timeout_s": 30.0,
    "scoring.timeout_s": 5.0,
}


@dataclass(frozen=True, slots=True)
class Ordeal:
    """How a run is to be struck."""

    minutes: float
    seed: int
    every_s: float  # mean seconds between two faults
    kinds: tuple[str, ...] = tuple(KINDS)
    reference: bool = False  # compare with a run that nothing happens to
    patience_s: float = 1800.0  # without a step: the run hangs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it."""

    home: Path
    seconds: float  # from the first step to the end of the last launch
    steps: int
    evidence: Evidence
    mends: tuple[Mend, ...]
    violations: Mapping[str, list[str]]  # by invariant

    @property
    def passed(self) -> bool:
        """Nothing was violated."""
        return not any(self.violations.values())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        launches = self.evidence.launches
        return {
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "steps": self.steps,
            "launches": len(launches),
            "strikes": len(self.evidence.strikes),
            "kinds": {row.kind: asdict(row) for row in rows(self.evidence, self.mends)},
            "uninvited": Counter(fault["kind"] for fault in uninvited(self.evidence, self.mends)),
            "violations": {name: found for name, found in self.violations.items() if found},
            "held": [name for name, found in self.violations.items() if not found],
            "folder": str(self.home),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of fault: how often it struck, and how fast it was noticed and mended; seconds."""

    kind: str
    struck: int
    mended: int
    detection_median_s: float | None
    detection_max_s: float | None
    recovery_median_s: float | None
    recovery_max_s: float | None


def run_chaos(config: RunConfig, ordeal: Ordeal, console: Console) -> Verdict:
    """Strike a run for some minutes, let it finish, and judge what lies on disk; prints what happens and the verdict.

    Raises:
        ConfigError: the configuration cannot work here, or there is no such fault.
    """
    preflight(config)
    kinds = [kind for kind in ordeal.kinds if not (ordeal.reference and kind in MASKING)]
    plan = schedule(ordeal.seed, ordeal.every_s, kinds)
    first = next(plan)
    home = folder_beside_runs(config.output_dir, f"chaos-{config.name}-")
    declared = chaos_config(config, output_dir=home)
    say(console, f"chaos: {home}")
    for change in config_changes(to_dict(config), to_dict(declared), meaning=()):
        say(console, f"  {change}")
    rules = rules_of(declared, task_stream(prepare_tasks(declared, "train", console).tasks, declared))
    trial = Trial(declared, home, console, rules, ordeal.patience_s)
    trial.endure(_from(first, plan), ordeal.minutes * 60)
    reached = trial.steps_done
    if trial.is_alive:
        trial.finish(reached + MORE_STEPS)
    evidence = read_evidence(home, home / declared.name)
    violations = judge(evidence, rules, trial.steps_done)
    if ordeal.reference and trial.is_alive:
        violations["reference"] = same_as(evidence, trial.reference(reached), reached)
    verdict = Verdict(home, trial.seconds, trial.steps_done, evidence, tuple(mends(evidence, rules)), violations)
    print_verdict(verdict, console)
    return verdict


def chaos_config(config: RunConfig, *, output_dir: Path) -> RunConfig:
    """The configuration of a run that is to be struck: endless, saved after every step, all of it on record."""
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
    for key, seconds in SHORT.items():
        section, name = key.split(".")
        declares = getattr(declared, section)
        if getattr(declares, name) == _default(type(declares), name):
            seconds = max(seconds, declared.video.decode_timeout_s + 10.0) if name == "stall_timeout_s" else seconds
            declared = replace(declared, **{section: replace(declares, **{name: seconds})})
    return declared


def rules_of(config: RunConfig, tasks_for: Callable[[int, int], Sequence[Any]]) -> Rules:
    """What is demanded of a run of this configuration."""
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
    )


def rows(evidence: Evidence, mended: Sequence[Mend]) -> list[Row]:
    """Per kind of fault that struck: how often, and how it went."""
    struck, found = Counter(strike.kind for strike in evidence.strikes), []
    for kind in (kind for kind in KINDS if struck[kind]):
        if KINDS[kind].ends_the_run:
            back = [_back_s(strike.time_s, evidence.launches) for strike in evidence.strikes if strike.kind == kind]
            detections, recoveries = [], [seconds for seconds in back if seconds is not None]
            count = len(recoveries)
        else:
            good = [mend for mend in mended if mend.strike.kind == kind and mend.outcome == MENDED]
            detections = [mend.detection_s for mend in good if mend.detection_s is not None]
            recoveries = [mend.recovery_s for mend in good if mend.recovery_s is not None]
            count = len(good)
        found.append(Row(kind, struck[kind], count, *_middle_and_most(detections), *_middle_and_most(recoveries)))
    return found


def print_verdict(verdict: Verdict, console: Console) -> None:
    """The table of faults, then what holds and what does not."""
    table = Table(box=None, pad_edge=False)
    table.add_column("fault")
    for heading in ("struck", "mended", "noticed s", "max", "back s", "max"):
        table.add_column(heading, justify="right")
    for row in rows(verdict.evidence, verdict.mends):
        seconds = (row.detection_median_s, row.detection_max_s, row.recovery_median_s, row.recovery_max_s)
        table.add_row(row.kind, str(row.struck), str(row.mended), *("" if s is None else f"{s:.1f}" for s in seconds))
    console.print(table)
    for name, found in verdict.violations.items():
        say(console, f"{name}: {'held' if not found else f'violated {len(found)} times'}")
        for violation in found[:10]:
            say(console, f"  {violation}")
    if others := uninvited(verdict.evidence, verdict.mends):
        kinds = Counter(fault["kind"] for fault in others)
        say(console, f"mended, though nobody struck: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")
    told = f"{verdict.steps} steps in {verdict.seconds:.0f} s, {len(verdict.evidence.strikes)} faults"
    say(console, f"{told}: {'all invariants held' if verdict.passed else 'NOT all invariants held'}")
    say(console, f"everything is in {verdict.home}")


def _back_s(struck_s: float, launches: Sequence[Launch]) -> float | None:
    """Seconds from the end of a run to the first step that it reported after it was started again."""
    firsts = [launch.first_step_s for launch in launches if launch.started_s >= struck_s and launch.first_step_s]
    return min(firsts) - struck_s if firsts else None


def _middle_and_most(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    return (round(median(seconds), 2), round(max(seconds), 2)) if seconds else (None, None)


def _from(first: Due, rest: Iterator[Due]) -> Iterator[Due]:
    yield first
    yield from rest


def _default(section: type, name: str) -> Any:
    return next(declared.default for declared in fields(section) if declared.name == name)
