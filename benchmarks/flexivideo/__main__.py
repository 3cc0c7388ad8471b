"""Does a policy learn more from scenes than from windows of fixed length, and what breaks the rule that cuts them?

    python -m benchmarks.flexivideo                         # six arms on three seeds, then RESULTS.md and figure
    python -m benchmarks.flexivideo --seeds 0 --arms pairs sixes dynamic trainer.steps=200
    python -m benchmarks.flexivideo --read                  # tables and figure again, nothing is run

Every arm of a seed starts from the same weights and is fine-tuned on the same clips in the same order. Interrupted, it
continues where it was: what was measured on a finished run is kept in runs.jsonl beside the results, also for another
machine; an unfinished one begins anew. KEY=VALUE overrides go to every run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.flexivideo import cuts, report
from benchmarks.flexivideo.runs import (
    ARMS,
    FAMILIES,
    FinishedRun,
    Scale,
    features_folder,
    keep_finished,
    read,
    run_name,
    train_and_measure,
)
from benchmarks.records import RunRecords
from benchmarks.tables import print_conditions, print_table, printed_to
from envs.synthetic.shot_world import QUESTIONS
from rl.policy.scene_features import SceneFeatures

HERE, SCALE = Path(__file__).parent, Scale()


def main() -> None:
    options = parse_arguments()
    scale = Scale(options.clips, options.held_out)
    settings = [*options.overrides, f"--clips={scale.train_clips}", f"--held-out={scale.held_out_clips}"]
    records = RunRecords(options.out / _named(options.family, "runs.jsonl"), settings)
    for seed in () if options.read else options.seeds:
        for arm in options.arms:
            if run_name(arm, seed, options.family) not in records:
                started = time.monotonic()
                train_and_measure(arm, seed, options.home, options.family, scale, options.overrides)
                keep_finished(records, options.home, [arm], [seed], options.family)
                sys.stderr.write(f"{arm}, seed {seed}: {time.monotonic() - started:.0f} s\n")
    keep_finished(records, options.home, options.arms, options.seeds, options.family)
    runs = read(records, options.arms, options.seeds, options.family)
    if not runs:
        raise SystemExit(f"{records.path}: no finished run of {', '.join(options.arms)}")
    with printed_to(options.out / _named(options.family, "RESULTS.md")):
        write_results(runs, options.out, options.family)
        write_cuts(options.home, options.seeds, options.family)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flexivideo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default 0 1 2)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="(default all)")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0], help="of the policy (default qwen2_5_vl)")
    parser.add_argument("--clips", type=int, default=SCALE.train_clips, help="to learn from (default %(default)s)")
    parser.add_argument("--held-out", type=int, default=SCALE.held_out_clips, help="(default %(default)s)")
    parser.add_argument("--home", type=Path, default=Path("runs/flexivideo"), help="of the runs (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="of runs.jsonl, RESULTS.md and the figure (default beside this file)"
    )
    parser.add_argument("--read", action="store_true", help="only read what is on record")
    options = parser.parse_intermixed_args(given)
    options.home = options.home.absolute()
    return options


def write_results(runs: Sequence[FinishedRun], out: Path, family: str) -> None:
    """Print RESULTS.md and write the figure it shows."""
    figure = _named(family, "tokens.png")
    report.plot(runs, out / figure)
    arms, seeds = list(report.by_arm(runs)), sorted({run.seed for run in runs})
    print("# FlexiVideo's ablation: results\n\nWhat is measured, and what it says: [README.md](README.md).\n")
    print_conditions("torch", "deepspeed", "ray", module="benchmarks.flexivideo")
    print(f"policy: tiny, {family}; seeds {', '.join(map(str, seeds))}; means ± Student's 95 % over seeds\n")
    print(f"![accuracy against visual tokens]({figure})\n\n## The claim\n")
    for arm in (name for name in arms if name not in report.WINDOWS):
        print(f"- {report.claim(runs, arm)}")
    print("\n## On the footage that was learned from\n")
    print_table(("arm", *QUESTIONS, "all", "motion, after half the steps"), report.accuracy_table(runs))
    print_table(("arm", *report.COSTS.values()), report.cost_table(runs))
    windows = [window for window in report.WINDOWS if window in arms]
    print("Minus the windows of fixed length, seed by seed (bold: the sign is certain at 95 %):\n")
    headings = [f"{what} - {window}" for what in ("all", "motion") for window in windows]
    print_table(("arm", "visual tokens", *headings), report.difference_table(runs))
    print("## What breaks the pixel rule, and what the others buy\n")
    bought = [f"{rule}: {what}" for rule in report.NEW_RULES for what in ("accuracy", "visual tokens")]
    print_table(("footage", "dynamic: tokens", "dynamic: accuracy", *bought), report.breaks_table(runs))
    for title, (measure, show) in report.FOOTAGE_TABLES.items():
        print(f"## {title}, by footage\n")
        print_table(("footage", *arms), report.footage_table(runs, measure, show))


def write_cuts(home: Path, seeds: Sequence[int], family: str) -> None:
    """Print where the rules cut; that of features where an arm of them has begun."""
    begun = [folder for seed in seeds if (folder := features_folder(home, seed, family)).is_dir()]
    features = SceneFeatures.read(begun[0]) if begun else None
    compared = cuts.rules(features)
    print("## Where the rules cut: F1 against what happens in a clip (scenes per clip)\n")
    print_table(("footage", *compared), cuts.table(compared, features))


def _named(family: str, name: str) -> str:
    """Files of another family stand beside those of the first."""
    return name if family == FAMILIES[0] else f"{Path(name).stem}-{family}{Path(name).suffix}"


if __name__ == "__main__":
    main()
