"""What a training step costs in this checkout and in another one: `python benchmarks/step_time.py OTHER_CHECKOUT`.

Both train the same configuration in turn, a few times, on the same machine; what counts is the ratio of the median
seconds per step, pair by pair. Loops of a run (saving, pulses, fingerprints) are in it, start and evaluation are not:
seconds are taken from one line of metrics.jsonl to the next. Where they go is said stage by stage (`seconds/...`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parents[1]
WARM_UP = 2  # steps that are not counted


def main() -> None:
    asked = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        ratios, runs = [], {"here": [], "other": []}
        for repeat in range(asked.repeats):
            order = [("other", asked.other.resolve()), ("here", HERE)]
            taken = {}
            for name, checkout in order if repeat % 2 == 0 else reversed(order):
                runs[name].append(train(checkout, Path(folder) / name, f"{name}-{repeat}", asked))
                taken[name] = step_seconds(runs[name][-1])
            ratios.append(taken["here"] / taken["other"])
            print(f"repeat {repeat + 1}: other {taken['other']:.3f} s, here {taken['here']:.3f} s, {ratios[-1]:.3f}")
    for name, lines in runs.items():
        measured = [step_seconds(run) for run in lines]
        print(f"{name}: {statistics.median(measured):.3f} s per step ({min(measured):.3f}..{max(measured):.3f})")
    print(f"here / other: {statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})")
    stages = {name: stage_seconds(lines) for name, lines in runs.items()}
    for stage in sorted(stages["here"].keys() & stages["other"].keys()):
        print(f"  {stage:28} other {stages['other'][stage]:.4f} s, here {stages['here'][stage]:.4f} s")


def train(checkout: Path, home: Path, name: str, asked: argparse.Namespace) -> list[dict[str, float]]:
    """One run; its lines of metrics.jsonl, those of the warm-up left out."""
    arguments = [*asked.config, f"trainer.steps={asked.steps}", "trainer.eval_tasks=0", "placement.dashboard=false"]
    arguments += [f"name={name}", f"output_dir={home}/runs", f"cache_dir={home}/cache"]
    subprocess.run(
        [sys.executable, "-m", "rl", "train", *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines = [json.loads(line) for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds/step" in line][WARM_UP:]


def step_seconds(lines: list[dict[str, float]]) -> float:
    """Median seconds between two steps of one run."""
    return statistics.median(after["time_s"] - before["time_s"] for before, after in pairwise(lines))


def stage_seconds(runs: list[list[dict[str, float]]]) -> dict[str, float]:
    """Median seconds of whatever the lines time, over all steps of all runs."""
    lines = [line for run in runs for line in run]
    timed = {name for name in lines[0] if name.startswith("seconds/") or name.endswith("/seconds")}
    return {name: statistics.median(line[name] for line in lines if name in line) for name in timed}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="another checkout, with the packages of this environment")
    parser.add_argument("config", nargs="*", default=["configs/quickstart.yaml"], help="YAML files and KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20, help="per run (default 20)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default 3)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
