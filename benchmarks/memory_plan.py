"""The memory plan against measured peaks: learner ranks at the real widths of published sizes, on the CPU.

    python benchmarks/memory_plan.py                                   # counted: 1 to 4 GiB, half a minute a case
    python benchmarks/memory_plan.py --resident --scratch /tmp/widths  # processes that really hold it: up to 14 GiB

Every case is a policy with random weights whose learner takes two updates; the larger of the second's two peaks
(backward pass, optimizer step) is compared with what `dynframe check` would plan. Counted are the allocations of one
rank, with large tensors that have no contents (benchmarks/learner_allocations.py): any depth, any number of ranks.
With --resident each rank is a process, cut to few layers; its peak is its largest resident memory since the phase
began, less what it held after its imports, and matrix products and attention are not computed but for --compute: their
results are written with zeros.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tables import print_conditions, print_table

GIB = 2**30
SCORED = 64
PATCHES = 8  # along each side of a frame


@dataclass(frozen=True)
class Case:
    """A policy and the settings of its learner."""

    family: str
    size: str
    layers: int
    dtype: str
    zero_stage: int
    ranks: int
    recomputed: str  # learner.activation_checkpointing
    tokens: int
    frames: int = 4

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.family} {self.size}, {self.layers or 'all'} layers"


def case(name: str, layers: int, dtype: str, zero_stage: int, ranks: int, recomputed: str, *sizes: int) -> Case:
    """A case in one line; layers 0: all; sizes: tokens, and frames."""
    family, _, size = name.partition(" ")
    return Case(family, size, layers, dtype, zero_stage, ranks, recomputed, *sizes)


THREE, FOUR = "qwen2_5_vl 3b", "qwen3_vl 4b"
RECOMPUTED = ("none", "vision", "language", "all")
CASES = (
    case(THREE, 2, "bfloat16", 1, 2, "all", 1024),
    case(THREE, 2, "bfloat16", 2, 2, "all", 1024),
    case(THREE, 2, "bfloat16", 3, 2, "all", 1024),
    case(THREE, 2, "float32", 1, 2, "all", 1024),
    case(THREE, 2, "float32", 2, 2, "all", 1024),
    case(THREE, 2, "float32", 3, 2, "all", 1024),
    case(THREE, 4, "bfloat16", 2, 4, "none", 4096),
    case(THREE, 4, "float32", 1, 4, "none", 4096),
    case(FOUR, 2, "bfloat16", 1, 2, "all", 1024),
    case(FOUR, 2, "bfloat16", 2, 2, "all", 1024),
    case(FOUR, 2, "bfloat16", 3, 2, "all", 1024),
    case(FOUR, 2, "float32", 2, 2, "all", 1024),
    case(FOUR, 4, "bfloat16", 2, 4, "none", 4096),
    case(FOUR, 4, "float32", 3, 4, "none", 4096),
    case(THREE, 0, "bfloat16", 2, 6, "all", 4096),
    case(THREE, 0, "bfloat16", 3, 6, "all", 16384),
    case(FOUR, 0, "bfloat16", 2, 6, "all", 16384),
    case("qwen2_5_vl 7b", 0, "bfloat16", 3, 6, "all", 4096),
    case("qwen3_vl 8b", 0, "bfloat16", 3, 6, "all", 16384),
    *(case(name, 4, "bfloat16", 2, 4, parts, 4096, 128) for name in (THREE, FOUR) for parts in RECOMPUTED),
)
RESIDENT = (
    case(THREE, 2, "bfloat16", 2, 1, "all", 1024),
    case(FOUR, 2, "bfloat16", 2, 1, "none", 4096),
    case(FOUR, 2, "bfloat16", 3, 2, "all", 1024),
)
SMALL = (case(THREE, 1, "bfloat16", 2, 2, "all", 512),)


def main() -> None:
    options = parse_arguments()
    print_conditions("torch", "transformers", "deepspeed")
    rows, cases = [], SMALL if options.small else RESIDENT if options.resident else CASES
    for each in cases[options.first : options.last]:
        if options.resident:
            measured = measure(each, options.scratch, options.vocabulary, compute=options.compute)
        else:
            measured = counted(each, options.vocabulary)
        rows += [row(each, plan(each, options.vocabulary), measured)]
    headings = ("policy", "dtype", "ZeRO", "ranks", "recomputed", "tokens", "visual tokens")
    phases = ("backward planned", "backward measured", "step planned", "step measured", "error of the peak")
    print_table((*headings, *phases), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resident", action="store_true", help="measure resident memory instead of counting")
    parser.add_argument("--scratch", type=Path, help="folder for policies; a few GB each, deleted again")
    parser.add_argument("--vocabulary", choices=("tiny", "qwen"), default="qwen", help="rows of embeddings and head")
    parser.add_argument("--compute", action="store_true", help="compute products and attention")
    parser.add_argument("--small", action="store_true", help="one small case")
    parser.add_argument("--first", type=int, default=0, help="first case")
    parser.add_argument("--last", type=int, default=None, help="the case to stop before")
    options = parser.parse_args()
    if options.resident and options.scratch is None:
        parser.error("--resident needs --scratch")
    return options


def counted(case: Case, vocabulary: str) -> dict[str, float]:
    """Bytes of both phases, counted in a process of its own."""
    given = json.dumps({"case": asdict(case), "vocabulary": vocabulary})
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("learner_allocations.py")), given],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)},  # large tensors are pages that nobody has touched
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def row(case: Case, planned: Mapping[str, float], measured: Mapping[str, float]) -> tuple[str, ...]:
    """GiB of both phases, and by how much the plan is off at the larger peak."""
    error = max(planned.values()) / max(measured.values()) - 1
    return (
        case.name,
        case.dtype,
        str(case.zero_stage),
        str(case.ranks),
        case.recomputed,
        str(case.tokens),
        str(case.frames * (PATCHES // 2) ** 2),
        *(f"{value / GIB:.2f}" for phase in ("backward", "step") for value in (planned[phase], measured[phase])),
        f"{error:+.1%}",
    )


def plan(case: Case, vocabulary: str) -> dict[str, float]:
    """Bytes of both phases, of one rank."""
    from rl.learner.settings import deepspeed_settings
    from rl.memory_plan.learner import learner_memory
    from rl.policy.structure import kernel_frames, read_structure

    config = run_config(case)
    published = model_config_of(case, vocabulary)
    structure = read_structure(published, case.name, init_frames=kernel_frames(config.policy))
    trained = structure.trained(freeze_vision=False)
    settings = deepspeed_settings(config.learner, case.dtype, trained, on_cuda=False)
    memory = learner_memory(config, structure, settings, cuda=False)
    return {
        "backward": sum(item.num_bytes for item in memory.backward()),
        "step": sum(item.num_bytes for item in memory.stepping()),
    }


def model_config_of(case: Case, vocabulary: str, ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """config.json of the policy.

    Args:
        ids: of special tokens; None: Qwen's.
    """
    from rl.policy.geometry import padded_vocab
    from rl.policy.sizes import published_size
    from rl.policy.stock.hub_files import PUBLISHED_IDS, model_config
    from rl.policy.stock.make import TINY_VOCABULARY

    size = published_size(case.family, case.size).cut(case.layers, case.layers and min(case.layers, 24))
    found = model_config(size, PUBLISHED_IDS if ids is None else ids)
    if vocabulary == "tiny":
        found.get("text_config", found)["vocab_size"] = padded_vocab(TINY_VOCABULARY)
    return found


def run_config(case: Case) -> Any:
    """The configuration whose longest trajectory is the one that is measured."""
    from rl.config.algorithm import AlgorithmConfig
    from rl.config.data import CoarseFramesConfig, RetrievalConfig, VideoConfig
    from rl.config.learner import LearnerConfig
    from rl.config.policy import PolicyConfig, ScenesConfig
    from rl.config.rewards import RewardTermConfig
    from rl.config.rollout import EngineConfig, RolloutConfig
    from rl.config.run import RunConfig

    side = PATCHES * (14 if case.family == "qwen2_5_vl" else 16)
    coarse = CoarseFramesConfig(
        min_frames=1, max_frames=case.frames, max_pixels=side * side, max_visual_tokens=case.tokens
    )
    engine = EngineConfig(max_model_len=case.tokens)
    return RunConfig(
        policy=PolicyConfig(path="measured", dtype=case.dtype, scenes=ScenesConfig(budget="none")),
        video=VideoConfig(coarse=coarse),
        retrieval=RetrievalConfig(max_calls=0),
        rollout=RolloutConfig(group_size=2, tasks_per_step=case.ranks, max_new_tokens=SCORED, engine=engine),
        rewards={"answer": RewardTermConfig(fn="answer")},
        algorithm=AlgorithmConfig(),
        learner=LearnerConfig(
            num_ranks=case.ranks,
            zero_stage=case.zero_stage,
            micro_batch=1,
            activation_checkpointing=case.recomputed,
        ),
    )


def measure(case: Case, scratch: Path, vocabulary: str, *, compute: bool) -> dict[str, float]:
    """Bytes of both phases, of the rank that held most; each rank in a process of its own."""
    from rl.config.policy import ScenesConfig
    from rl.policy.convert import convert_stock_checkpoint
    from rl.policy.sizes import published_size
    from rl.policy.stock.make import make_checkpoint

    stock, folder = scratch / "stock", scratch / "policy"
    for old in (stock, folder):
        shutil.rmtree(old, ignore_errors=True)
    size = published_size(case.family, case.size).cut(case.layers, case.layers)
    make_checkpoint(size, stock, vocabulary=vocabulary)
    convert_stock_checkpoint(stock, folder, ScenesConfig(budget="none"), seed=0)
    shutil.rmtree(stock)
    context = multiprocessing.get_context("spawn")
    answers, port = context.Queue(), free_port()
    ranks = [
        context.Process(target=learn, args=(case, str(folder), rank, port, compute, answers))
        for rank in range(case.ranks)
    ]
    for process in ranks:
        process.start()
    try:
        found = [answers.get(timeout=1800) for _ in ranks]
    finally:
        for process in ranks:
            process.join(60)
            process.kill()
        shutil.rmtree(folder)
    return {phase: max(peaks[phase] for peaks in found) for phase in found[0]}


def learn(case: Case, folder: str, rank: int, port: int, compute: bool, answers: Any) -> None:
    """One rank: two updates, the peaks of the second."""
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    from contextlib import nullcontext

    import torch

    from rl.learner.learner import Learner
    from rl.policy.configuration import read_configuration
    from rl.policy.families import family_of
    from rl.policy.model import policy_class

    torch.set_num_threads(1)
    policy_class(family_of(folder)), read_configuration(folder)  # imports that belong to no phase
    config = run_config(case)
    gc.collect()
    imported = resident()
    learner = Learner(
        folder,
        policy=config.policy,
        learner=config.learner,
        algorithm=config.algorithm,
        temperature=1.0,
        total_steps=10,
        rank=rank,
        world_size=case.ranks,
        master_port=port,
    )
    samples = [sample(case, learner._processor, seed=rank)] * 2  # siblings: a micro-batch each, with the same block
    peaks: dict[str, float] = {}
    apply = learner._engine.apply

    def measured_apply() -> Any:
        peaks["backward"] = peak() - imported
        restart_peak()
        outcome = apply()
        peaks["step"] = peak() - imported
        return outcome

    learner._engine.apply = measured_apply
    with nullcontext() if compute else skipped_products():
        for _ in range(2):
            gc.collect()
            restart_peak()
            learner.update(samples)
    answers.put(peaks)
    learner.close()


def sample(case: Case, processor: Any, seed: int) -> Any:
    """A trajectory of the case's length: one block of frames, each a scene, and text; the last tokens are learned."""
    import numpy as np

    from rl.trajectory import Frames, TrainingSample

    side = PATCHES * processor.geometry.patch
    pixels = np.random.default_rng(seed).integers(0, 255, (case.frames, side, side, 3), dtype=np.uint8)
    block = Frames(pixels, tuple(map(float, range(case.frames))), (1,) * case.frames, side, side, f"block {seed}")
    ids = list(processor.video_block(block))
    allowed = np.flatnonzero(processor.allowed_token_mask())
    ids += [int(allowed[index % 200]) for index in range(case.tokens - len(ids))]
    learned = [False] * (case.tokens - SCORED) + [True] * SCORED
    return TrainingSample(
        token_ids=tuple(ids),
        segment_ids=tuple(2 * flag for flag in learned),
        turn_ids=(0,) * case.tokens,
        behavior_logprobs=tuple(-1.0 * flag for flag in learned),
        advantages=tuple(0.5 * flag for flag in learned),
        loss_mask=tuple(learned),
        policy_versions=tuple(0 if flag else -1 for flag in learned),
        videos=(block,),
    )


def skipped_products() -> Any:
    """A mode under which products and attention are not computed: memory is taken and written as if they were."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten

    def written(like: Any, *shape: int) -> Any:
        return like.new_empty(shape).fill_(0.0)

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        batch, heads, tokens, width = query.shape
        out = written(query, batch, tokens, heads, width).transpose(1, 2)
        return out, written(query, batch, tokens, heads).float().transpose(1, 2)

    def attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> tuple[Any, ...]:
        return tuple(written(part, *part.shape) for part in (query, key, value))

    instead = {
        aten.mm.default: lambda a, b: written(a, a.shape[0], b.shape[1]),
        aten.addmm.default: lambda _, a, b, **__: written(a, a.shape[0], b.shape[1]),
        aten.bmm.default: lambda a, b: written(a, a.shape[0], a.shape[1], b.shape[2]),
        aten._scaled_dot_product_flash_attention_for_cpu.default: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default: attention_backward,
    }

    class SkippedProducts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: Mapping | None = None) -> Any:
            return instead.get(func, func)(*args, **(kwargs or {}))

    return SkippedProducts()


def resident() -> int:
    """Bytes of this process in memory."""
    return _status("VmRSS")


def peak() -> int:
    """The most since `restart_peak`."""
    return _status("VmHWM")


def restart_peak() -> None:
    """Begin a new phase."""
    Path("/proc/self/clear_refs").write_text("5")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
