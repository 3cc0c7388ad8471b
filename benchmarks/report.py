"""Seconds and bytes of `dynframe report`, and milliseconds until a browser has the page ready.

    python benchmarks/report.py runs/quickstart --steps 50 --repeats 5
    python benchmarks/report.py runs/quickstart --steps 500 --trajectories 256 --repeats 1

A run of fewer steps is repeated under new step numbers up to --steps (its records and metrics as they are: texts
count again, pictures are shared, as in any run that shows a clip again); one with more is cut. So are the groups of a
step, under new group numbers, up to --trajectories. Building is measured as
elapsed and as processor time, decoding included, in this process. Ready is from the start of the navigation until the
first page stands, its curves drawn; opening is from the click on a group until its trajectory has all its pictures.
Without Playwright and Chromium only the building is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from tables import median_and_range, print_conditions, print_table

from envs.video.reader import VideoReader
from rl.report.build import MIB, build_report
from rl.report.run_files import open_run, read_json_lines, step_files
from rl.run.page import ClipFrames

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    options = parse_arguments()
    print_conditions("pillow", "av", "playwright", repeats=options.repeats)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for run in map(open_run, options.runs):
            sized, trained = resized(run, Path(scratch) / run.name, options.steps, options.trajectories)
            page = Path(scratch) / f"{run.name}.html"
            built = [build(sized, page, options.max_mib) for _ in range(options.repeats)]
            seconds, cpu_seconds, written = zip(*built, strict=True)
            ready_ms, open_ms = opened(page, options.repeats)
            rows.append(
                [
                    run.name,
                    f"{options.steps} ({trained} trained)",
                    written[0].num_trajectories,
                    f"{sum(file.path.stat().st_size for file in step_files(sized)) / MIB:.1f}",
                    f"{written[0].num_bytes / MIB:.2f}",
                    median_and_range(seconds),
                    median_and_range(cpu_seconds),
                    median_and_range(ready_ms, ".0f") if ready_ms else "no browser",
                    median_and_range(open_ms, ".0f") if open_ms else "no browser",
                ]
            )
            for notice in written[0].notices:
                print(f"{run.name}: {notice}")
    headings = [
        "run",
        "steps",
        "trajectories",
        "records MiB",
        "page MiB",
        "build s",
        "build CPU s",
        "ready ms",
        "open ms",
    ]
    print_table(headings, rows)


def resized(run: Path, folder: Path, steps: int, trajectories: int) -> tuple[Path, int]:
    """A copy of a run with as many steps as asked for; and how many of them the run itself has.

    Args:
        trajectories: of each step; 0: as many as it has.
    """
    files = [file for file in step_files(run) if file.kind == "train"]
    for file in step_files(run):
        (folder / file.path.parent.name).mkdir(parents=True, exist_ok=True)
        if file.kind == "held_out":
            shutil.copy(file.path, folder / "held_out")
    shutil.copy(run / "config.yaml", folder)
    lines = [line for line, _ in read_json_lines(run / "metrics.jsonl", run)]
    trained = [line for line in lines if "seconds/step" in line]
    kept = [line for line in lines if "seconds/step" not in line]
    for step in range(1, steps + 1):
        turn = (step - 1) % len(files)
        copied = folder / "trajectories" / f"step_{step:06d}.jsonl"
        copied.write_text(widened(files[turn].path, trajectories), encoding="utf-8")
        kept.append(trained[turn % len(trained)] | {"step": step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return folder, min(steps, len(files))


def widened(records: Path, trajectories: int) -> str:
    """A step's records, its groups repeated or cut to so many trajectories; whole groups only."""
    text = records.read_text(encoding="utf-8")
    if not trajectories:
        return text
    lines = [json.loads(line) for line in text.split("\n") if line]
    groups = list({line["group"]: [one for one in lines if one["group"] == line["group"]] for line in lines}.values())
    kept, number = [], 0
    while len(kept) + len(group := groups[number % len(groups)]) <= trajectories:
        kept += [json.dumps(line | {"group": number}, ensure_ascii=False) + "\n" for line in group]
        number += 1
    return "".join(kept)


def build(run: Path, page: Path, max_mib: float):
    """Elapsed seconds, processor seconds, and what was written."""
    start, cpu_start = time.perf_counter(), time.process_time()
    with VideoReader(workers=0) as reader:
        written = build_report(run, page, ClipFrames(reader), max_bytes=int(max_mib * MIB))
    return time.perf_counter() - start, time.process_time() - cpu_start, written


def opened(page: Path, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds until ready, and from a click until a trajectory's pictures are there."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright  # the measurement without a browser needs none
    except ImportError:
        return [], []
    if chromium is None:
        return [], []
    ready_ms, open_ms = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(repeats):
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            tab.set_default_timeout(120_000)
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready='1']")
            ready_ms.append(tab.evaluate("performance.getEntriesByName('ready')[0].startTime"))
            tab.click("#tab-steps")
            tab.wait_for_selector("#groups .open")
            open_ms.append(
                tab.evaluate(
                    """() => new Promise((done) => {
                      const start = performance.now();
                      const look = () => {
                        const pictures = [...document.querySelectorAll("img.frame")];
                        if (pictures.length && pictures.every((each) => each.complete)) done(performance.now() - start);
                        else requestAnimationFrame(look);
                      };
                      document.querySelector("#groups .open").click();
                      look();
                    })"""
                )
            )
            tab.close()
        browser.close()
    return ready_ms, open_ms


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--trajectories", type=int, default=0, help="of each step; 0: as many as it has")
    parser.add_argument("--max-mib", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
