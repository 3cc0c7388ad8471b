"""A run under test: launched as often as it takes, faults injected as planned, observed from outside only.

Every injection and every launch is logged (chaos.jsonl, launches.jsonl); whether the run is correct is decided
elsewhere (rl.fault_injection.invariants).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.checkpoint.store import CheckpointStore
from rl.config.file import to_yaml
from rl.config.run import RunConfig, with_absolute_code
from rl.fault_injection.artifacts import BY_FAULT, HUNG, LAUNCHES, STOPPED, Launch, Rules, read_artifacts
from rl.fault_injection.cluster_under_test import ClusterUnderTest
from rl.fault_injection.inject import INJECTIONS, FaultInjector, Injection, append_json_line
from rl.fault_injection.launch import EXIT_S, RunningLaunch, last_step
from rl.fault_injection.recovery import UNDETECTED, recoveries
from rl.fault_injection.run_process import launched
from rl.fault_injection.schedule import FAULT_TYPES, TERMINATE, PlannedFault

END_S = 180.0  # for a run to end that has lost Ray's head service
RECOVERY_TIMEOUT_S = 300.0  # after the last fault, for all to be recovered


class InjectionQueue:
    """Planned faults that are due, and those to come. The clock is paused while a run starts.

    Otherwise all faults planned for the seconds of a start would be injected at its end, at once.
    """

    def __init__(self, plan: Iterator[PlannedFault]) -> None:
        self._plan = plan
        self._next = next(plan)
        self._clock_s, self._before = 0.0, 0.0
        self.waiting: list[PlannedFault] = []  # due, but there was no target yet

    def pause(self) -> None:
        """Do not count the time since the last call: the run makes no steps yet."""
        self._before = time.monotonic()

    def due(self) -> list[PlannedFault]:
        """All that are due by now and not injected."""
        now = time.monotonic()
        self._clock_s, self._before = self._clock_s + now - self._before, now
        while self._next.after_s <= self._clock_s:
            self.waiting.append(self._next)
            self._next = next(self._plan)
        return list(self.waiting)


class RunUnderTest:
    """A run, launched as often as it takes."""

    def __init__(
        self,
        config: RunConfig,
        home: Path,
        console: Console,
        rules: Rules,
        timeout_s: float,
        cluster: ClusterUnderTest | None = None,
    ) -> None:
        """
        Args:
            cluster: what launches run on; by default this machine.
            rules: say by when a fault must have been detected.
            timeout_s: without a step, after which a launch counts as hung and is killed.
        """
        self._config, self._home, self._console = config, home, console
        self._rules, self._timeout_s = rules, timeout_s
        self._cluster = cluster
        self._run_dir = Path(config.output_dir) / config.name
        self._started: float | None = None  # time.monotonic() of the first step
        self._ended: float | None = None  # of the last launch
        self.is_alive = True  # no launch has hung, or ended by itself before it was due

    @property
    def steps_done(self) -> int:
        """The last step that the run has reported."""
        return last_step(self._run_dir / "metrics.jsonl")[0]

    @property
    def seconds(self) -> float:
        """From the first step to the end of the last launch."""
        return 0.0 if self._started is None or self._ended is None else self._ended - self._started

    def inject_for(self, seconds: float, plan: Iterator[PlannedFault]) -> None:
        """Inject faults until the time is over, then stop the run."""
        settings = self._write(self._config)
        queue = InjectionQueue(plan)
        while self.is_alive:
            with self._launch(settings) as launch:
                self._inject_into(launch, queue, seconds)
                is_over = launch.ended == STOPPED and self._clock() >= seconds
                self.is_alive = launch.ended in (BY_FAULT, STOPPED)
            if is_over:
                return

    def finish(self, steps: int) -> None:
        """Launch it once more, for the last steps."""
        trainer = replace(self._config.trainer, steps=steps)
        self._log(f"no more faults; on to step {steps}")
        with self._launch(self._write(replace(self._config, trainer=trainer))) as launch:
            launch.run_to_end()

    def reference(self, steps: int) -> list[Mapping[str, Any]]:
        """Lines of the same run, to at least so many steps, without faults."""
        self._log("the same without faults")
        config, home = replace(self._config, name="reference"), self._home / "without_faults"
        home.mkdir()
        other = RunUnderTest(replace(config, output_dir=str(home)), home, self._console, self._rules, self._timeout_s)
        with other._launch(other._write(other._config)) as launch:
            while launch.poll() and other.steps_done < steps:
                pass
            launch.stop()
        return list(read_artifacts(home, home / "reference").lines)

    def _inject_into(self, launch: RunningLaunch, queue: InjectionQueue, seconds: float) -> None:
        """Faults into one launch, to its end."""
        injector = FaultInjector(launch.tree, self._run_dir, self._home / INJECTIONS, self._cluster)
        queue.pause()
        while launch.poll():
            if not launch.first_step_s:
                queue.pause()  # a process lost while a run starts ends the run, with a line that says so
                continue
            self._started = self._started or time.monotonic()
            injector.refresh()
            if self._clock() >= seconds:  # and the last launch has shown that it goes on
                if queue.waiting:
                    self._log(f"no target for: {', '.join(planned.fault_type for planned in queue.waiting)}")
                    queue.waiting.clear()
                if self._is_settled():
                    launch.stop()
                continue
            if self._inject_due(queue, injector, launch):
                break

    def _inject_due(self, queue: InjectionQueue, injector: FaultInjector, launch: RunningLaunch) -> bool:
        """Inject what is due; returns whether that has ended the launch."""
        for planned in queue.due():
            injection = injector.inject(planned)
            if injection is None:
                continue
            queue.waiting.remove(planned)
            self._log(f"{planned.fault_type}: process {injection.pid}, {injection.title} {injection.note}")
            if self._ends(launch, injection):
                return True
        return False

    @staticmethod
    def _ends(launch: RunningLaunch, injection: Injection) -> bool:
        """Whether this fault ends the launch; after a SIGTERM the run is given time to stop."""
        fault_type = FAULT_TYPES[injection.fault_type]
        if fault_type.action == TERMINATE:
            launch.wait_stopped(injection.time_s)
        elif fault_type.ends_the_run:  # by itself, where only what it runs on was taken away
            launch.ended = BY_FAULT if not fault_type.needs_nodes or launch.wait_ended(END_S) else HUNG
        return fault_type.ends_the_run

    def _is_settled(self) -> bool:
        """Every injected fault is recovered, or has been pending for too long to ever be."""
        over_s = time.time() - RECOVERY_TIMEOUT_S
        artifacts = read_artifacts(self._home, self._run_dir)
        pending = [recovery for recovery in recoveries(artifacts, self._rules) if recovery.outcome == UNDETECTED]
        return all(recovery.injection.time_s < over_s for recovery in pending)

    def _clock(self) -> float:
        """Seconds since the first step; -1 before it."""
        return -1.0 if self._started is None else time.monotonic() - self._started

    def _write(self, config: RunConfig) -> Path:
        settings = self._home / "settings.yaml"
        settings.write_text(to_yaml(with_absolute_code(config)), encoding="utf-8")
        return settings

    @contextlib.contextmanager
    def _launch(self, settings: Path) -> Iterator[RunningLaunch]:
        started_s, metrics = time.time(), self._run_dir / "metrics.jsonl"
        start = launched if self._cluster is None else self._cluster.launched
        with start(settings, self._home / "output.log") as process:
            tree = self._cluster.tree(process) if self._cluster is not None else None
            launch = RunningLaunch(process, metrics, self._config.trainer.stop_grace_s, self._timeout_s, tree)
            try:
                yield launch
                launch.ended_s = launch.ended_s or time.time()  # it was killed
                left = launch.tree.wait_gone(EXIT_S)
                self._ended = time.monotonic()
                self._record(launch, started_s, left)
            finally:
                launch.tree.kill()

    def _record(self, launch: RunningLaunch, started_s: float, left: list[int]) -> None:
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
        append_json_line(self._home / LAUNCHES, record)
        self._log(
            f"launch ended {launch.ended}: exit code {record.exit_code} after {record.reported} steps, "
            f"{record.saved} saved"
        )

    def _log(self, text: str) -> None:
        print_line(self._console, f"{max(self._clock(), 0.0):7.1f} s  step {self.steps_done}  {text}")


def print_line(console: Console, text: str) -> None:
    """A line as it is: no markup, not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
