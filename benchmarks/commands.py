"""Seconds that the small things take: commands that start nothing, and the first step of a run that goes on.

    python benchmarks/commands.py --repeats 5
    python benchmarks/commands.py --repeats 3 --resume runs/quickstart

Each is a process of its own, measured from its start to its end: elapsed, and the processor time of it and of the
processes that it waited for. `python` alone is what an interpreter takes here before it does anything. `doctor, first`
tries its imports; `doctor` remembers them. `--resume` copies a finished run, lets it go on for one step, and measures
until that step is in metrics.jsonl, Ray and the workers' start included; its processor time is that of all processes of
the run by then.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from process_times import watched
from tables import median_and_range, print_conditions, print_table

COMMAND = [sys.executable, "-m", "rl"]
AIMS = {"--help": 0.3, "check": 5.0, "doctor": 3.0, "first step of a resumed run": 30.0}  # seconds, of the project
POLL_S, RESUME_S = 0.05, 1800.0

Measured = tuple[float, float]  # seconds elapsed, seconds of processors


def main() -> None:
    options = parse_arguments()
    print_conditions("typer", "rich", "ray", repeats=options.repeats)
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for name, measure in contestants(options, Path(scratch)).items():
            if options.only and name not in options.only:
                continue
            seconds, cpu_seconds = zip(*(measure() for _ in range(options.repeats)), strict=True)
            aim = f"{AIMS[name]:g}" if name in AIMS else ""
            rows.append([name, median_and_range(seconds, ".2f"), median_and_range(cpu_seconds, ".2f"), aim])
    print_table(["what", "s", "CPU s", "aim s"], rows)


def contestants(options: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], Measured]]:
    """What is measured, by name."""
    memory = {"XDG_CACHE_HOME": str(scratch / "cache")}
    found = {
        "python": lambda: ran([sys.executable, "-c", "pass"]),
        "--help": lambda: ran([*COMMAND, "--help"]),
        "check": lambda: ran([*COMMAND, "check", options.config]),
        "doctor, first": lambda: ran([*COMMAND, "doctor", "--again"], memory),
        "doctor": lambda: ran([*COMMAND, "doctor"], memory),
    }
    if options.resume:
        found["first step of a resumed run"] = lambda: resumed(options.resume, scratch)
    return found


def ran(command: list[str], more: dict[str, str] | None = None) -> Measured:
    """A command that must not fail, run to its end."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **(more or {})})
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def resumed(run: Path, scratch: Path) -> Measured:
    """A copy of the run goes on until one more step is reported."""
    copy = scratch / "resumed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, symlinks=True)
    metrics = copy / "metrics.jsonl"
    before = steps_in(metrics)
    planned = int(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]["steps"])
    overrides = [f"output_dir={scratch}", "name=resumed", f"trainer.steps={planned + 1}", "trainer.eval_tasks=0"]
    with watched(metrics) as times:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*COMMAND, "train", str(run / "config.yaml"), *overrides],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while steps_in(metrics) == before:
                if process.poll() is not None or time.perf_counter() - start > RESUME_S:
                    raise RuntimeError(f"{run}: did not go on")
                time.sleep(POLL_S)
            seconds = time.perf_counter() - start
            process.wait(timeout=RESUME_S)
        finally:
            process.terminate()
    return seconds, times.last.total()


def steps_in(metrics: Path) -> int:
    """Training steps that are reported."""
    return metrics.read_text(encoding="utf-8").count('"seconds/step"')


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml", help="of `check`")
    parser.add_argument("--resume", type=Path, help="a finished run that is to go on")
    parser.add_argument(
        "--only",
        nargs=argparse.REMAINDER,
        default=(),
        help="names of what is measured, last of all; everything by default",
    )
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
