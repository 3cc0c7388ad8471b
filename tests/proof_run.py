"""A small run for the tests of resume and faults, deterministic where the machine allows it.

Five clips, four tasks a step: an epoch ends inside every step but the first. Of two siblings, many are equal, so that
dynamic sampling redraws some groups.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    "cold_start.batch_size=8",
    "rollout.num_workers=2",
    "rollout.tasks_per_step=4",
    "rollout.group_size=2",
    "rollout.stall_timeout_s=5",
    "video.decode_stall_timeout_s=4",
    "learner.timeout_s=60",
    "weight_sync.timeout_s=30",
    "algorithm.dynamic_sampling=1",
    "trainer.eval_tasks=0",
)


def runs_in(home: Path, *overrides: str, deterministic: bool) -> Runs:
    """Runs of that configuration, each in its own folder of `home`."""
    config = load_config([QUICKSTART], [*SMALL, *overrides])
    console = Console(quiet=True)
    return Runs(config, home, total_steps=STEPS, console=console, timeout_s=1800, deterministic=deterministic)


def numbers(steps: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """What follows from configuration and seed in lines of metrics.jsonl: no times, no room, no hits of caches."""
    measured = ("second", "_per_s", "time_s", "memory/", "disk/", "idle/", "engine/", "cached", "tail")
    return {
        step: {name: value for name, value in line.items() if not any(part in name for part in measured)}
        for step, line in steps.items()
    }


def records(run_dir: Path) -> dict[str, bytes]:
    """The recorded trajectories of every step."""
    return {file.name: file.read_bytes() for file in sorted((run_dir / "trajectories").iterdir())}


def order_of_turns(line: Mapping[str, Any]) -> list[str]:
    """What engine 0, rank 0 and the driver did in a line of lanes.jsonl, in order, where GPUs are taken in turn.

    "<" begins something and ">" ends it; sampling is told once, however many requests it took.
    """
    shown = {"asleep/0": "", "offloaded/0": "learner without ", "learner/0": "", "push": "", "rollout/0": ""}
    said = {"weights and KV cache": "engine without everything", "KV cache": "engine without KV cache"}
    marks = []
    for lane, prefix in shown.items():
        for work, start_s, end_s in line["lanes"].get(lane, ()):
            name = said.get(work, f"{prefix}{work}")
            marks += [(end_s, 0, f"{name} >"), (start_s, 1, f"< {name}")]  # what ends makes room for what begins
    names = [name for *_, name in sorted(marks)]
    sampling = [index for index, name in enumerate(names) if name.endswith("rollout") or name.startswith("rollout")]
    return [name for index, name in enumerate(names) if index not in sampling or index == sampling[0]]


TURN = (  # of the learners, and the push behind it
    *("< engine without everything", "learner without masters, moments and gradients >", "< update", "update >"),
    *("< push", "engine without everything >", "< engine without KV cache", "engine without KV cache >", "push >"),
)


def violations(run_dir: Path, lag: int = 0) -> list[str]:
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
    rules = Rules(lambda step, attempt: (), 2, config.parity.warn_nat, stop_grace_s=60.0, hung_s={}, max_lag=lag)
    return [
        *wrong,
        *every_step_once(artifacts, STEPS),
        *versions_are_consecutive(artifacts, rules),
        *parity_within_limit(artifacts, rules),
    ]
