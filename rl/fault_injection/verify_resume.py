"""`dynframe verify-resume`: a run that was killed and resumed is the run that never stopped, or where the two part.

Part of the composition root. Runs follow one another, each in a process of its own with a Ray of its own: one straight
to the end; one that is killed, all its processes at once, and resumed with `resume=auto`. Then the fingerprints of all
their steps (rl.tracking.fingerprint) are compared.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rl.checkpoint.store import CHECKPOINTS, MANIFEST, CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import to_yaml
from rl.config.run import RunConfig
from rl.fault_injection.run_process import folder_beside_runs, kill_everything_of, launched
from rl.report.run_files import Broken, read_json_lines
from rl.run.check import preflight
from rl.run.prepare import progress_bar
from rl.tracking.fingerprint import PREFIX, first_difference

MOMENTS = ("boundary", "mid-step")
STRAIGHT, INTERRUPTED = "straight", "interrupted"  # names of the two runs
LOOK_EVERY_S = 0.05
Line = Mapping[str, Any]  # of metrics.jsonl


class VerificationError(RuntimeError):
    """The proof could not be carried through; the message says which run failed and where its output lies."""


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
    """What a kill did, and where the run goes on."""

    processes: int
    steps_done: int  # as far as the run had reported
    resumes_at: int  # steps in the newest whole checkpoint


@dataclass(frozen=True, slots=True)
class ComparedStep:
    """One step of both runs."""

    step: int
    straight: str  # its state/hash; empty: the run has none
    resumed: str
    parted_at: str | None  # the first stage whose fingerprints differ; None: equal


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of it."""

    killed: tuple[Killed, ...]
    steps: tuple[ComparedStep, ...]

    @property
    def first_difference(self) -> ComparedStep | None:
        """The step at which the runs part."""
        return next((step for step in self.steps if step.parted_at is not None), None)

    @property
    def passed(self) -> bool:
        """Every step is equal."""
        return self.first_difference is None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        first = self.first_difference
        return {
            "passed": self.passed,
            "killed": [asdict(killed) for killed in self.killed],
            "steps": [asdict(step) for step in self.steps],
            "first_difference": None if first is None else {"step": first.step, "stage": first.parted_at},
        }


def verify_resume(
    config: RunConfig, console: Console, *, at: int, steps: int, moment: str = "boundary", run_timeout_s: float = 3600.0
) -> Proof:
    """`at` + `steps` steps straight, against `at` steps, a kill, and `steps` more; prints what differs.

    The runs lie beside the configured one and are removed, unless they differ or one failed.

    Raises:
        ConfigError: the configuration cannot work here.
        VerificationError: a run failed, or took longer than `run_timeout_s`.
    """
    if moment not in MOMENTS:
        raise ConfigError(f"command line: --moment must be one of {', '.join(MOMENTS)}, got {moment!r}")
    preflight(config)
    home = folder_beside_runs(config.output_dir, f"verify-resume-{config.name}-")
    try:
        runs = Runs(config, home, total_steps=at + steps, console=console, timeout_s=run_timeout_s)
        straight = runs.straight()
        resumed, killed = runs.interrupted([Kill(at, moment)])
        proof = Proof(killed, compare(straight, resumed, at + steps))
    except VerificationError:
        console.print(f"kept for a look: {home}", markup=False, highlight=False, soft_wrap=True)
        raise
    print_proof(proof, console)
    if proof.passed:
        shutil.rmtree(home)
    else:
        console.print(f"both runs and their output: {home}", markup=False, highlight=False, soft_wrap=True)
    return proof


class Runs:
    """Runs of one configuration, in folders and processes of their own.

    runs = Runs(config, folder, total_steps=4, console=console)
    runs.straight()                                  # -> the lines of its steps
    runs.interrupted([Kill(1), Kill(2, "mid-step")]) # -> likewise, and what each kill did
    """

    def __init__(
        self, config: RunConfig, home: Path, *, total_steps: int, console: Console, timeout_s: float = 3600.0
    ) -> None:
        self._config, self._home, self._total = config, home.absolute(), total_steps
        self._console, self._timeout_s = console, timeout_s

    def straight(self) -> dict[int, Line]:
        """The run that nothing happens to."""
        with self._launched(STRAIGHT, "straight", save_every=0) as run:
            run.finish()
        return run.lines()

    def interrupted(self, kills: Sequence[Kill]) -> tuple[dict[int, Line], tuple[Killed, ...]]:
        """The run that is killed and resumed, once for each of `kills`."""
        suffered = []
        for number, kill in enumerate(kills, start=1):
            title = f"killed {kill.moment} {kill.after}"
            with self._launched(INTERRUPTED, title, save_every=kill.after, part=number) as run:
                suffered.append(run.kill(kill))
        with self._launched(INTERRUPTED, "resumed", save_every=0, part=len(kills) + 1) as run:
            run.finish()
        return run.lines(), tuple(suffered)

    @contextlib.contextmanager
    def _launched(self, name: str, title: str, *, save_every: int, part: int = 1) -> Iterator[RunProcess]:
        settings, log = self._home / f"{name}-{part}.yaml", self._home / f"{name}-{part}.log"
        declared = proof_config(
            self._config, name=name, output_dir=self._home, steps=self._total, save_every=save_every
        )
        settings.write_text(to_yaml(declared), encoding="utf-8")
        with progress_bar(self._console) as progress, launched(settings, log) as process:
            yield RunProcess(process, title, self._home / name, log, self._total, progress, self._timeout_s)


class RunProcess:
    """A run under way, seen from outside: its process and what it writes."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        title: str,
        folder: Path,
        log: Path,
        total: int,
        progress: Progress,
        timeout_s: float,
    ) -> None:
        self._process, self._title, self._folder, self._log, self._total = process, title, folder, log, total
        self._progress, self._bar = progress, progress.add_task(title, total=total)
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
        """Wait for the moment, then kill every process of the run at once.

        Raises:
            VerificationError: the run ended before.
        """
        is_late = kill.moment == "mid-step"
        lost = 1 if is_late and kill.after + 1 < self._total else 0
        manifest = self._folder / CHECKPOINTS / f"step_{kill.after:08d}" / MANIFEST
        self._watch(lambda: manifest.is_file() and len(self.lines()) >= kill.after + lost)
        if is_late and (lines := self.lines()):
            newest = lines[max(lines)]  # half a step from when it was written, not from when it was seen
            self._let_pass(max(0.0, newest["time_s"] + newest["seconds/step"] / 2 - time.time()))
        if self._process.poll() is not None:
            raise self._failure(f"ended (exit code {self._process.returncode}) before it could be killed")
        processes = kill_everything_of(self._process)
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
            self._progress.update(self._bar, completed=len(self.lines()))
            if time.monotonic() > self._deadline:
                raise self._failure("took too long (--timeout)")
            self._let_pass(LOOK_EVERY_S)
        self._progress.update(self._bar, completed=len(self.lines()))

    def _let_pass(self, seconds: float) -> None:
        """Some time, or less if the run ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def _failure(self, what: str) -> VerificationError:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return VerificationError(
            f"the run {self._title!r} {what}; its output: {self._log}{f'; it ends: {said[-1]}' if said else ''}"
        )


def proof_config(config: RunConfig, *, name: str, output_dir: Path, steps: int, save_every: int) -> RunConfig:
    """The configuration of a run of the proof: deterministic, as long as the proof, saved where it shall be resumed."""
    return replace(
        config,
        name=name,
        output_dir=str(output_dir),
        resume="auto",
        rollout=replace(config.rollout, deterministic=True),
        trainer=replace(
            config.trainer,
            steps=steps,
            save_every=save_every,
            eval_every=0,  # no best one in between
            remote="",  # where the next proof would go on from this one
        ),
        logging=replace(config.logging, tensorboard=False, wandb="disabled"),
        placement=replace(config.placement, dashboard=False),
    )


def compare(straight: Mapping[int, Line], resumed: Mapping[int, Line], total_steps: int) -> tuple[ComparedStep, ...]:
    """All steps of two runs, those before the kill as well: that they are equal is the ground the proof stands on."""
    compared = []
    for step in range(1, total_steps + 1):
        ours, theirs = straight.get(step, {}), resumed.get(step, {})
        hashes = (str(line.get(f"{PREFIX}hash", "")) for line in (ours, theirs))
        compared.append(ComparedStep(step, *hashes, first_difference(ours, theirs)))
    return tuple(compared)


def print_proof(proof: Proof, console: Console) -> None:
    """A table of the steps, and the verdict."""
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "straight", "resumed", ""):
        table.add_column(heading, justify="right" if heading == "step" else "left")
    for step in proof.steps:
        verdict = "equal" if step.parted_at is None else f"{PREFIX}{step.parted_at} differs"
        table.add_row(str(step.step), step.straight, step.resumed, verdict)
    console.print(table)
    for killed in proof.killed:
        console.print(
            f"{killed.processes} processes killed after {killed.steps_done} steps, resumed at step {killed.resumes_at}",
            highlight=False,
        )
    first = proof.first_difference
    if first is None:
        console.print("the resumed run is the run that never stopped, bit for bit", highlight=False)
    else:
        console.print(f"step {first.step}: the runs part at {PREFIX}{first.parted_at}", highlight=False)
