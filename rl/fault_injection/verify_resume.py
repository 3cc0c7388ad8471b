"""`dynframe verify-resume`: is a run that was killed and resumed equal to an uninterrupted one, and if not, from where?

Part of the composition root. Two runs are made, one after the other (rl.fault_injection.compared_runs): one
uninterrupted; one that is killed, all its processes at once, and resumed with `resume=auto`. Then the fingerprints of
all their steps (rl.tracking.fingerprint) are compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.fault_injection.compared_runs import Kill, Killed, Line, Runs, VerificationError
from rl.fault_injection.run_process import folder_beside_runs
from rl.run.preflight.check import preflight
from rl.run.preflight.finetune import preflight_finetune
from rl.tracking.fingerprint import PREFIX, first_difference

MOMENTS = ("boundary", "mid-step")


@dataclass(frozen=True, slots=True)
class ComparedStep:
    """One step of both runs."""

    step: int
    straight: str  # its state/hash; empty: the run has none
    resumed: str
    differs_at: str | None  # the first stage whose fingerprints differ; None: equal


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of an uninterrupted and a resumed run."""

    killed: tuple[Killed, ...]
    steps: tuple[ComparedStep, ...]

    @property
    def first_difference(self) -> ComparedStep | None:
        """The first step that differs."""
        return next((step for step in self.steps if step.differs_at is not None), None)

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
            "first_difference": None if first is None else {"step": first.step, "stage": first.differs_at},
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
    (preflight_finetune if config.only_finetunes else preflight)(config)
    home = folder_beside_runs(config.output_dir, f"verify-resume-{config.name}-")
    try:
        runs = Runs(config, home, total_steps=at + steps, console=console, timeout_s=run_timeout_s)
        straight = runs.straight()
        resumed, killed = runs.interrupted([Kill(at, moment)])
        proof = Proof(killed, compare(straight, resumed, at + steps))
    except VerificationError:
        console.print(f"the runs and their output are kept: {home}", markup=False, highlight=False, soft_wrap=True)
        raise
    print_proof(proof, console)
    if proof.passed:
        shutil.rmtree(home)
    else:
        console.print(f"both runs and their output: {home}", markup=False, highlight=False, soft_wrap=True)
    return proof


def compare(straight: Mapping[int, Line], resumed: Mapping[int, Line], total_steps: int) -> tuple[ComparedStep, ...]:
    """All steps of two runs, also those before the kill: a proof needs them to be equal, too."""
    compared = []
    for step in range(1, total_steps + 1):
        ours, theirs = straight.get(step, {}), resumed.get(step, {})
        hashes = (str(line.get(f"{PREFIX}hash", "")) for line in (ours, theirs))
        compared.append(ComparedStep(step, *hashes, first_difference(ours, theirs)))
    return tuple(compared)


def print_proof(proof: Proof, console: Console) -> None:
    """A table of the steps, and whether they are equal."""
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "straight", "resumed", ""):
        table.add_column(heading, justify="right" if heading == "step" else "left")
    for step in proof.steps:
        outcome = "equal" if step.differs_at is None else f"{PREFIX}{step.differs_at} differs"
        table.add_row(str(step.step), step.straight, step.resumed, outcome)
    console.print(table)
    for killed in proof.killed:
        console.print(
            f"{killed.processes} processes killed after {killed.steps_done} steps, resumed at step {killed.resumes_at}",
            highlight=False,
        )
    first = proof.first_difference
    if first is None:
        console.print("the resumed run equals the uninterrupted run, bit for bit", highlight=False)
    else:
        console.print(
            f"the runs differ from step {first.step} on, first in {PREFIX}{first.differs_at}", highlight=False
        )
