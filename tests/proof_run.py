"""A small run for the tests of resume and faults, deterministic where the machine allows it.

Five clips, four tasks a step: an epoch ends inside every step but the first. Of two siblings, many are equal, so that
dynamic sampling redraws some groups.
"""

from pathlib import Path

from rich.console import Console

from rl.config.file import load_config
from rl.fault_injection.artifacts import Rules, read_artifacts
from rl.fault_injection.compared_runs import Runs
from rl.fault_injection.invariants import every_step_once, parity_within_limit, versions_are_consecutive

STEPS = 5
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SMALL = (
    "data.quickstart.train_clips=5",
    "data.quickstart.held_out_clips=4",
    "cold_start.steps=60",
    "rollout.num_workers=2",
    "rollout.tasks_per_step=4",
    "rollout.group_size=2",
    "rollout.stall_timeout_s=5",
    "video.decode_stall_timeout_s=4",
    "learner.timeout_s=60",
    "algorithm.dynamic_sampling=1",
    "trainer.eval_tasks=0",
)


def runs_in(home: Path, *overrides: str, deterministic: bool) -> Runs:
    """Runs of that configuration, each in its own folder of `home`, with one cache."""
    config = load_config([QUICKSTART], [*SMALL, f"cache_dir={home}/cache", *overrides])
    console = Console(quiet=True)
    return Runs(config, home, total_steps=STEPS, console=console, timeout_s=1800, deterministic=deterministic)


def violations(run_dir: Path) -> list[str]:
    """What a run lacks of the guarantees that need no equal bits: steps, trajectories, versions, parity.

    Tasks are counted, not named: dynamic sampling replaces some of them.
    """
    artifacts, config = read_artifacts(run_dir, run_dir), load_config([QUICKSTART], list(SMALL))
    due = {(group, sibling) for group in range(config.rollout.tasks_per_step) for sibling in range(2)}
    wrong = [
        f"step {step}: {len(rolled_out)} trajectories, {len(set(rolled_out) & due)} of {len(due)} due"
        for step in range(1, STEPS + 1)
        if sorted(rolled_out := [(one.group, one.sibling) for one in artifacts.records.get(step, ())]) != sorted(due)
    ]
    rules = Rules(lambda step, attempt: (), 2, config.parity.warn_nat, stop_grace_s=60.0, hung_s={})
    return [
        *wrong,
        *every_step_once(artifacts, STEPS),
        *versions_are_consecutive(artifacts, rules),
        *parity_within_limit(artifacts, rules),
    ]
