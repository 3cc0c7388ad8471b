"""A run on trial: launched as often as it takes, struck as planned, and seen from outside only.

Every strike and every launch is written down (chaos.jsonl, launches.jsonl); nothing here judges.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.checkpoint.store import CheckpointStore
from rl.config.file import to_yaml
from rl.config.run import RunConfig
from rl.fault_injection.invariants import (
    BY_ITSELF,
    HUNG,
    LAUNCHES,
    STOPPED,
    STRUCK,
    UNNOTICED,
    Launch,
    Rules,
    mends,
    read_evidence,
)
from rl.fault_injection.run_process import Family, launched
from rl.fault_injection.schedule import KINDS, TERMINATE, Due
from rl.fault_injection.targets import CHAOS, Strike, Striker, append

LOOK_S = 0.25  # between two looks at a run under way
CENSUS_S = 1.0  # between two at all its processes
SETTLE_S = 300.0  # after the last fault, for all to be mended
GONE_S = 60.0  # for the processes of a launch to end after it
TAIL_BYTES = 65_536  # of metrics.jsonl, in which its last line lies


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

    def __init__(self, config: RunConfig, home: Path, console: Console, rules: Rules, patience_s: float) -> None:
        """
        Args:
            rules: tell by when a fault must have been mended.
            patience_s: without a step, after which a launch hangs and is killed.
        """
        self._config, self._home, self._console = config, home, console
        self._rules, self._patience_s = rules, patience_s
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
        quiet = Trial(replace(config, output_dir=str(home)), home, self._console, self._rules, self._patience_s)
        with quiet._launch(quiet._write(quiet._config)) as launch:
            while launch.goes_on() and quiet.steps_done < steps:
                pass
            launch.stop()
        return list(read_evidence(home, home / "reference").lines)

    def _strike(self, launch: Underway, agenda: Agenda, seconds: float) -> None:
        """One launch, to its end."""
        striker = Striker(launch.family, self._run_dir, self._home / CHAOS)
        agenda.stand()
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
        pending = [mend for mend in mends(evidence, self._rules) if mend.outcome == UNNOTICED]
        return all(mend.strike.time_s < over_s for mend in pending)

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
        say(self._console, f"{max(self._clock(), 0.0):7.1f} s  step {self.steps_done}  {what}")


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


def say(console: Console, text: str) -> None:
    """A line as it is: no markup, not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
