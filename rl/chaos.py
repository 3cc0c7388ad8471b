"""`dynframe chaos`: a real run that is struck by random faults again and again, and what must hold of it in the end.

Part of the composition root. The run is a process of its own, started with the same command as often as it takes. When
the time is over it is asked to stop, goes on for two more steps, and must end with exit code 0. With a reference, a run
that nothing happens to follows, and every step must be the same.

In a folder beside the configured run: chaos.jsonl (every strike), launches.jsonl (every start and its end), output.log,
and the run itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
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
from rl.chaos_invariants import (
    BY_ITSELF,
    HUNG,
    LAUNCHES,
    MENDED,
    STOPPED,
    STRUCK,
    UNNOTICED,
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
from rl.chaos_schedule import KINDS, TERMINATE, Due, schedule
from rl.chaos_victims import CHAOS, Strike, Striker, append
from rl.check import preflight
from rl.checkpoint import CheckpointStore
from rl.config import RunConfig, to_dict, to_yaml
from rl.prepare import prepare_tasks
from rl.resume import config_changes
from rl.run import task_stream
from rl.run_process import Family, folder_beside_runs, launched

ENDLESS = 100_000  # steps: more than there is time for
MORE_STEPS = 2  # after the last fault, to the end
LOOK_S = 0.25  # between two looks at a run under way
CENSUS_S = 1.0  # between two at all its processes
SETTLE_S = 300.0  # after the last fault, for all to be mended
GONE_S = 60.0  # for the processes of a launch to end after it
TAIL_BYTES = 65_536  # of metrics.jsonl, in which its last line lies
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
    plan = schedule(ordeal.seed, ordeal.every_s, ordeal.kinds)
    first = next(plan)
    home = folder_beside_runs(config.output_dir, f"chaos-{config.name}-")
    declared = chaos_config(config, output_dir=home)
    _say(console, f"chaos: {home}")
    for change in config_changes(to_dict(config), to_dict(declared), meaning=()):
        _say(console, f"  {change}")
    tasks = prepare_tasks(declared, "train", console).tasks
    trial = Trial(declared, home, console, ordeal.patience_s)
    trial.endure(_from(first, plan), ordeal.minutes * 60)
    reached = trial.steps_done
    if trial.is_alive:
        trial.finish(reached + MORE_STEPS)
    evidence = read_evidence(home, home / declared.name)
    rules = rules_of(declared, trial.steps_done, task_stream(tasks, declared))
    violations = judge(evidence, rules)
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


def rules_of(config: RunConfig, steps: int, tasks_for: Callable[[int, int], Sequence[Any]]) -> Rules:
    """What is demanded of a run of this configuration."""
    return Rules(
        steps=steps,
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


class Agenda:
    """What is due and has found nobody yet, and what comes next. Its clock stands while a run starts.

    Else all that falls into a start would strike at its end, at once.
    """

    def __init__(self, plan: Iterator[Due]) -> None:
        self._plan = plan
        self._next = next(plan)
        self._clock_s, self._before = 0.0, 0.0
        self.waiting: list[Due] = []

    def stand(self) -> None:
        """The run makes no steps yet."""
        self._before = time.monotonic()

    def due(self) -> list[Due]:
        """All that is due by now and not done."""
        now = time.monotonic()
        self._clock_s, self._before = self._clock_s + now - self._before, now
        while self._next.after_s <= self._clock_s:
            self.waiting.append(self._next)
            self._next = next(self._plan)
        return list(self.waiting)


class Trial:
    """A run, launched as often as it takes."""

    def __init__(self, config: RunConfig, home: Path, console: Console, patience_s: float) -> None:
        """
        Args:
            patience_s: without a step, after which a launch hangs and is killed.
        """
        self._config, self._home, self._console, self._patience_s = config, home, console, patience_s
        self._run_dir = home / config.name
        self._began: float | None = None  # time.monotonic() of the first step
        self._ended: float | None = None  # of the last launch
        self.is_alive = True  # no launch has ended by itself before it was due, or hung

    @property
    def steps_done(self) -> int:
        """As far as the run has reported."""
        return last_step(self._run_dir / "metrics.jsonl")[0]

    @property
    def seconds(self) -> float:
        """From the first step to the end of the last launch."""
        return 0.0 if self._began is None or self._ended is None else self._ended - self._began

    def endure(self, plan: Iterator[Due], seconds: float) -> None:
        """Strike the run until the time is over, then ask it to stop."""
        settings = self._write(self._config)
        agenda = Agenda(plan)
        while self.is_alive:
            with self._launch(settings) as launch:
                self._strike(launch, agenda, seconds)
                is_over = launch.ended == STOPPED and self._clock() >= seconds
                self.is_alive = launch.ended in (STRUCK, STOPPED)
            if is_over:
                return

    def finish(self, steps: int) -> None:
        """Start it once more, for the last steps."""
        trainer = replace(self._config.trainer, steps=steps)
        self._tell(f"no more faults; on to step {steps}")
        with self._launch(self._write(replace(self._config, trainer=trainer))) as launch:
            launch.wait()

    def reference(self, steps: int) -> list[Mapping[str, Any]]:
        """Lines of the same run, to at least so many steps, without faults."""
        self._tell("the same without faults")
        config, home = replace(self._config, name="reference"), self._home / "without_faults"
        home.mkdir()
        quiet = Trial(replace(config, output_dir=str(home)), home, self._console, self._patience_s)
        with quiet._launch(quiet._write(quiet._config)) as launch:
            while launch.goes_on() and quiet.steps_done < steps:
                pass
            launch.stop()
        return list(read_evidence(home, home / "reference").lines)

    def _strike(self, launch: Underway, agenda: Agenda, seconds: float) -> None:
        """One launch, to its end."""
        striker = Striker(launch.family, self._run_dir, self._home / CHAOS)
        while launch.goes_on():
            if not launch.first_step_s:
                agenda.stand()  # and what dies while a run starts ends it, with a line that says so
                continue
            self._began = self._began or time.monotonic()
            if self._clock() >= seconds:  # and the last launch has shown that it goes on
                if agenda.waiting:
                    self._tell(f"found nobody to strike: {', '.join(due.kind for due in agenda.waiting)}")
                    agenda.waiting.clear()
                if self._is_settled():
                    launch.stop()
                continue
            striker.look()
            for due in agenda.due():
                strike = striker.strike(due)
                if strike is not None:
                    agenda.waiting.remove(due)
                    self._tell(f"{due.kind}: process {strike.pid}, {strike.title} {strike.note}")
                    if self._ends(launch, strike):
                        break

    @staticmethod
    def _ends(launch: Underway, strike: Strike) -> bool:
        """Whether this strike is the end of the launch; a polite one is waited for."""
        mischief = KINDS[strike.kind]
        if mischief.what == TERMINATE:
            launch.wait_stopped(strike.time_s)
        elif mischief.ends_the_run:
            launch.ended = STRUCK
        return mischief.ends_the_run

    def _is_settled(self) -> bool:
        """Everything that was struck is mended, or will never be."""
        over_s = time.time() - SETTLE_S
        evidence = read_evidence(self._home, self._run_dir)
        pending = [mend for mend in mends(evidence, self._rules()) if mend.outcome == UNNOTICED]
        return all(mend.strike.time_s < over_s for mend in pending)

    def _rules(self) -> Rules:
        return rules_of(self._config, self.steps_done, lambda step, attempt: ())

    def _clock(self) -> float:
        """Seconds since the first step; below every schedule before it."""
        return -1.0 if self._began is None else time.monotonic() - self._began

    def _write(self, config: RunConfig) -> Path:
        settings = self._home / "settings.yaml"
        settings.write_text(to_yaml(config), encoding="utf-8")
        return settings

    @contextlib.contextmanager
    def _launch(self, settings: Path) -> Iterator[Underway]:
        started_s, metrics = time.time(), self._run_dir / "metrics.jsonl"
        with launched(settings, self._home / "output.log") as process:
            launch = Underway(process, metrics, self._config.trainer.stop_grace_s, self._patience_s)
            try:
                yield launch
                left = launch.family.wait_gone(GONE_S)
                self._ended = time.monotonic()
                self._record(launch, started_s, left)
            finally:
                launch.family.kill()

    def _record(self, launch: Underway, started_s: float, left: list[int]) -> None:
        found = CheckpointStore(self._run_dir).latest_valid()
        record = Launch(
            started_s=started_s,
            first_step_s=launch.first_step_s,
            ended_s=launch.ended_s,
            ended=launch.ended,
            exit_code=launch.exit_code,
            stop_s=launch.stop_s,
            reported=self.steps_done,
            saved=found.state.step if found else 0,
            left=left,
        )
        append(self._home / LAUNCHES, record)
        self._tell(f"{launch.ended}: exit code {record.exit_code} after {record.reported} steps, {record.saved} saved")

    def _tell(self, what: str) -> None:
        _say(self._console, f"{max(self._clock(), 0.0):7.1f} s  step {self.steps_done}  {what}")


class Underway:
    """One launch of a run, seen from outside."""

    def __init__(self, process: subprocess.Popen[bytes], metrics: Path, grace_s: float, patience_s: float) -> None:
        self._process, self._metrics, self._grace_s, self._patience_s = process, metrics, grace_s, patience_s
        self._started_s = time.time()
        self._progress = (0, time.monotonic())  # the last step, and when it was seen first
        self._looked = 0.0
        self.family = Family(process)
        self.first_step_s = 0.0
        self.ended_s = 0.0
        self.ended = BY_ITSELF
        self.stop_s = 0.0

    @property
    def exit_code(self) -> int:
        """Of a launch that has ended."""
        return self._process.returncode

    def goes_on(self) -> bool:
        """After a moment: whether the run has not ended. One that hangs is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=LOOK_S)
        if time.monotonic() - self._looked > CENSUS_S:
            self.family.look()
            self._looked = time.monotonic()
        step, time_s = last_step(self._metrics)
        if not self.first_step_s and time_s >= self._started_s:
            self.first_step_s = time_s
        if step != self._progress[0]:
            self._progress = (step, time.monotonic())
        if self._process.poll() is None and time.monotonic() - self._progress[1] > self._patience_s:
            self.family.kill()
            self.ended = HUNG
        if self._process.poll() is not None:
            self.ended_s = self.ended_s or time.time()
            return False
        return True

    def wait(self) -> None:
        """Until it ends."""
        while self.goes_on():
            pass

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        os.kill(self._process.pid, signal.SIGTERM)
        self.wait_stopped(time.time())

    def wait_stopped(self, asked_s: float) -> None:
        """Wait until it has stopped; what does not is killed."""
        self.ended = STOPPED
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2 * self._grace_s + GONE_S)
        if self._process.poll() is None:
            self.family.kill()
        self.ended_s, self.stop_s = time.time(), time.time() - asked_s


def last_step(metrics: Path) -> tuple[int, float]:
    """The last step that a run has reported, and when; (0, 0) before the first."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = file.read().splitlines()
    except OSError:
        return 0, 0.0
    for text in reversed(tail):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            return int(line["step"]), float(line["time_s"])
    return 0, 0.0


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
        _say(console, f"{name}: {'held' if not found else f'violated {len(found)} times'}")
        for violation in found[:10]:
            _say(console, f"  {violation}")
    if others := uninvited(verdict.evidence, verdict.mends):
        kinds = Counter(fault["kind"] for fault in others)
        _say(console, f"mended, though nobody struck: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")
    told = f"{verdict.steps} steps in {verdict.seconds:.0f} s, {len(verdict.evidence.strikes)} faults"
    _say(console, f"{told}: {'all invariants held' if verdict.passed else 'NOT all invariants held'}")
    _say(console, f"everything is in {verdict.home}")


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


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
