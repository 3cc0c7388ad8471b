"""The runs that `dynframe verify-resume` compares: one uninterrupted, one killed and resumed.

Each is a process of its own with a Ray of its own, observed from outside: by its checkpoints and metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.checkpoint.manifest import MANIFEST
from rl.checkpoint.store import CHECKPOINTS, CheckpointStore
from rl.config.file import to_yaml
from rl.config.run import RunConfig, with_absolute_code
from rl.fault_injection.run_process import kill_process_tree, launched
from rl.report.run_files import Broken, read_json_lines
from rl.run.console.stages import Stage, counted_stage
from rl.tracking.fingerprint import PREFIX

STRAIGHT, INTERRUPTED = "straight", "interrupted"  # names of the two runs
POLL_S = 0.05
Line = Mapping[str, Any]  # of metrics.jsonl


class VerificationError(RuntimeError):
    """The runs could not be compared; the message says which run failed and where its output lies."""


@dataclass(frozen=True, slots=True)
class Kill:
    """When everything of a run is killed.

    "boundary": as soon as the checkpoint of `after` steps is published. "mid-step": half a step later, and if another
    step comes before the last, that one is done and lost too.
    """

    after: int  # steps
    moment: str = "boundary"


@dataclass(frozen=True, slots=True)
class Killed:
    """What a kill did, and from where the run was resumed."""

    processes: int
    steps_done: int  # as far as the run had reported
    resumes_at: int  # steps in the newest whole checkpoint


class Runs:
    """Runs of one configuration, in folders and processes of their own.

    runs = Runs(config, folder, total_steps=4, console=console)
    runs.straight()                                  # -> the lines of its steps
    runs.interrupted([Kill(1), Kill(2, "mid-step")]) # -> likewise, and what each kill did
    """

    def __init__(
        self,
        config: RunConfig,
        home: Path,
        *,
        total_steps: int,
        console: Console,
        timeout_s: float = 3600.0,
        deterministic: bool = True,
    ) -> None:
        self._deterministic = deterministic
        self._config, self._home, self._total = config, home.absolute(), total_steps
        self._console, self._timeout_s = console, timeout_s

    def straight(self) -> dict[int, Line]:
        """The uninterrupted run."""
        with self._launched(STRAIGHT, "straight", save_every=0) as run:
            run.finish()
        return run.lines()

    def interrupted(self, kills: Sequence[Kill]) -> tuple[dict[int, Line], tuple[Killed, ...]]:
        """The run that is killed and resumed, once for each of `kills`."""
        killed = []
        for number, kill in enumerate(kills, start=1):
            title = f"killed {kill.moment} {kill.after}"
            with self._launched(INTERRUPTED, title, save_every=kill.after, part=number) as run:
                killed.append(run.kill(kill))
        with self._launched(INTERRUPTED, "resumed", save_every=0, part=len(kills) + 1) as run:
            run.finish()
        return run.lines(), tuple(killed)

    @contextlib.contextmanager
    def _launched(self, name: str, title: str, *, save_every: int, part: int = 1) -> Iterator[RunProcess]:
        settings, log = self._home / f"{name}-{part}.yaml", self._home / f"{name}-{part}.log"
        declared = proof_config(
            self._config,
            name=name,
            output_dir=self._home,
            steps=self._total,
            save_every=save_every,
            deterministic=self._deterministic,
        )
        settings.write_text(to_yaml(with_absolute_code(declared)), encoding="utf-8")
        command = "finetune" if declared.only_finetunes else "train"
        with (
            counted_stage(self._console, f"run: {title}", self._total) as steps,
            launched(settings, log, command) as process,
        ):
            yield RunProcess(process, title, self._home / name, log, self._total, steps, self._timeout_s)


class RunProcess:
    """A run under way, observed from outside: its process and what it writes."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        title: str,
        folder: Path,
        log: Path,
        total: int,
        steps: Stage,
        timeout_s: float,
    ) -> None:
        self._process, self._title, self._folder, self._log, self._total = process, title, folder, log, total
        self._steps = steps
        self._deadline = time.monotonic() + timeout_s

    def finish(self) -> None:
        """Wait for the last step and the end.

        Raises:
            VerificationError: the run failed.
        """
        self._watch(lambda: False)
        if self._process.returncode != 0:
            raise self._failure(f"failed (exit code {self._process.returncode})")

    def kill(self, kill: Kill) -> Killed:
        """Wait for the moment to kill, then kill every process of the run at once.

        Raises:
            VerificationError: the run ended before.
        """
        is_late = kill.moment == "mid-step"
        lost = 1 if is_late and kill.after + 1 < self._total else 0
        manifest = self._folder / CHECKPOINTS / f"step_{kill.after:08d}" / MANIFEST
        self._watch(lambda: manifest.is_file() and len(self.lines()) >= kill.after + lost)
        if is_late and (lines := self.lines()):
            newest = lines[max(lines)]  # half a step after it was written, not after it was seen here
            self._sleep(max(0.0, newest["time_s"] + newest["seconds/step"] / 2 - time.time()))
        if self._process.poll() is not None:
            raise self._failure(f"ended (exit code {self._process.returncode}) before it could be killed")
        processes = kill_process_tree(self._process)
        found = CheckpointStore(self._folder).latest_valid()
        return Killed(processes, len(self.lines()), found.state.step if found else 0)

    def lines(self) -> dict[int, Line]:
        """The lines of its steps in metrics.jsonl."""
        path = self._folder / "metrics.jsonl"
        lines = [line for line, _ in read_json_lines(path, self._folder)] if path.is_file() else []
        return {line["step"]: line for line in lines if not isinstance(line, Broken) and f"{PREFIX}hash" in line}

    def _watch(self, reached: Callable[[], bool]) -> None:
        """Return when `reached`, or when the run has ended."""
        while self._process.poll() is None and not reached():
            self._steps.update(len(self.lines()))
            if time.monotonic() > self._deadline:
                raise self._failure("took too long (--timeout)")
            self._sleep(POLL_S)
        self._steps.update(len(self.lines()))

    def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the run."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def _failure(self, what: str) -> VerificationError:
        output = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return VerificationError(
            f"the run {self._title!r} {what}; its output: {self._log}{f'; it ends: {output[-1]}' if output else ''}"
        )


def proof_config(
    config: RunConfig, *, name: str, output_dir: Path, steps: int, save_every: int, deterministic: bool = True
) -> RunConfig:
    """The configuration of a compared run: so many steps long, saved where it is to be resumed."""
    return replace(
        config,
        name=name,
        output_dir=str(output_dir),
        resume="auto",
        rollout=replace(config.rollout, deterministic=deterministic),
        learner=replace(config.learner, digest_every=1),  # whatever the run leaves out: a proof is of every step
        trainer=replace(
            config.trainer,
            steps=steps,
            save_every=save_every,
            eval_every=0,  # no best one in between
            remote="",  # or the next comparison would resume from there
        ),
        logging=replace(config.logging, tensorboard=False, wandb="disabled"),
        placement=replace(config.placement, dashboard=False),
    )
