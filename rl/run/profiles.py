"""Profiles of the steps that trainer.profile_steps names, of every engine and every learner rank.

    RUN/profiles/step_3/learner_0.json.gz, learner_1.json.gz, rollout_0.json.gz, …

Each begins when the step before has been reported and ends when its own has, as the step's lanes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from rl.run.console.stages import say, stage
from rl.run.timeline import Timeline
from rl.tracking.lanes import profiles_of


class Profiled(Protocol):
    """Workers whose computing can be recorded: the engines (actors.profiles), the learner ranks (actors.learner)."""

    def begin_profiles(self) -> None: ...

    def write_profiles(self, folder: Path) -> list[str]: ...


class Profiles:
    """Begins and ends profiles between two steps.

    Args:
        steps: counted from 1.
        timeline: the run's, on which writing has a lane.
    """

    def __init__(
        self,
        steps: Sequence[int],
        run_dir: Path,
        workers: Sequence[Profiled],
        console: Console,
        timeline: Timeline,
    ) -> None:
        self._steps, self._run_dir, self._workers = frozenset(steps), run_dir, workers
        self._console, self._timeline = console, timeline

    def before(self, step: int) -> None:
        """`step` is about to begin."""
        if step in self._steps:
            for workers in self._workers:
                workers.begin_profiles()

    def after(self, step: int) -> None:
        """`step` has been reported."""
        if step not in self._steps:
            return
        folder = profiles_of(self._run_dir, step)
        with stage(self._console, f"writing the profiles of step {step}"), self._timeline.span("profile"):
            written = [name for workers in self._workers for name in workers.write_profiles(folder)]
        say(self._console, f"profiles of step {step}: {folder} ({', '.join(written) or 'none'})")
