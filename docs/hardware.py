"""docs/hardware.md: which policy can be trained on which GPUs, and at which settings, from the memory plan.

    python docs/hardware.py        # writes the page

Every cell is the first of the settings, best first, with which `dynframe check` says that it fits: the longest context,
then the fewest sacrifices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from rl.config.file import load_config
from rl.config.learner import AUTO
from rl.config.rollout import EngineConfig
from rl.config.run import RunConfig
from rl.memory_plan.gpus import GPUS
from rl.memory_plan.plan import Hardware, memory_plan
from rl.memory_plan.record import GIB, MemoryPlan
from rl.policy.sizes import PublishedSize, published_size
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import Structure, kernel_frames, read_structure

HERE = Path(__file__).parent
PAGE = HERE / "hardware.md"
SIZES = (("qwen2_5_vl", "3b"), ("qwen2_5_vl", "7b"), ("qwen3_vl", "2b"), ("qwen3_vl", "4b"), ("qwen3_vl", "8b"))
CONFIGS = {"qwen2_5_vl": "configs/sd_grpo_qwen2_5_vl_3b.yaml", "qwen3_vl": "configs/sd_grpo_qwen3_vl_4b.yaml"}
MEMORY = {"24 GB": "a10-24gb", "40 GB": "a100-40gb", "80 GB": "h100-80gb", "141 GB": "h200-141gb"}
NUMBERS = (1, 2, 4, 8)
CONTEXTS = (24_576, 16_384, 8_192)
SHORTEST = 4_096  # with LoRA only
TURNS = [share / 50 for share in range(22, 41)]  # of a GPU, for an engine that has it in turn with a learner
OFFLOAD = "configs/deepspeed_zero2_offload.json"
NF4_BITS = 4.127  # per weight, doubly quantised constants of blocks of 64 included
SHARED = {"rollout_gpus": 0.4, "learner_gpus": 0.6}  # of the one GPU that engine and learner share


@dataclass(frozen=True)
class Sacrifice:
    """Settings of a learner that take less memory than the ones before."""

    told: str
    zero_stage: int
    has_reference: bool = True
    is_offloaded: bool = False
    lora_rank: int = 0


SACRIFICES = (
    Sacrifice("ZeRO-2", 2),
    Sacrifice("ZeRO-3", 3),
    Sacrifice("ZeRO-2, no reference", 2, has_reference=False),
    Sacrifice("ZeRO-3, no reference", 3, has_reference=False),
    Sacrifice("offload", 2, is_offloaded=True),
    Sacrifice("offload, no reference", 2, has_reference=False, is_offloaded=True),
)
LORA = Sacrifice("LoRA", 2, lora_rank=32)  # where nothing else fits at any context


@dataclass(frozen=True)
class Fit:
    """A setting that fits."""

    told: str
    plan: MemoryPlan


def main() -> None:
    os.chdir(HERE.parent)
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    tables = "\n".join(_table(published_size(*name)) for name in SIZES)
    reported = ", ".join(f"{name}: {GPUS[gpu]:g} GiB" for name, gpu in MEMORY.items())
    shared = f"placement.rollout_gpus={SHARED['rollout_gpus']} placement.learner_gpus={SHARED['learner_gpus']}"
    return f"""# Hardware

<!-- written by `python docs/hardware.py` -->

Which policy can be trained on how many GPUs, and at which settings. The tables are the memory part of what
`dynframe check` answers with the settings of `configs/`: bfloat16, vision blocks frozen, activations recomputed where
they do not fit (`learner.activation_checkpointing=auto`), one trajectory per forward pass (`learner.micro_batch=1`), a
coarse view of up to 128 frames and a look of up to 64. Of 2 and 4 GPUs one has an engine, of 8 two have engines; the
others have a learner rank each (`rollout.num_workers=1` with `learner.num_ranks=1` or `3`; 8: 2 and 6, as shipped;
`rollout.engine.gpu_memory_utilization=0.9`). At 8k set `video.coarse.max_visual_tokens=4096`, too (4k: 2048); at
16k the widest looks get fewer frames.

A cell is the first of these that fits: a context of 24k tokens (`rollout.engine.max_model_len` and
`learner.micro_tokens` 24576), 16k, 8k; within each, as little given up as possible:

| cell | settings |
|---|---|
| ZeRO-2 | `learner.zero_stage=2`: optimizer and gradients are cut up over the learner's GPUs |
| ZeRO-3 | `learner.zero_stage=3`: weights, too; gathering them layer by layer costs time |
| no reference | `algorithm.loss.kl_beta=0`: no frozen policy beside the one in training, hence no divergence from it |
| offload | `learner.deepspeed_config={OFFLOAD}`: optimizer and its step in main memory |
| kept | nothing is recomputed: activations fit as they are |
| LoRA | `policy.lora.rank=32`: low-rank updates are trained, where nothing else fits; then also 4k |
| turns | `placement.share_gpus=turns`: engine and learner have the GPU in turn (the smallest share from 0.44 on) |
| eager | `rollout.engine.enforce_eager=true`: no CUDA graphs, slower decoding |
| tp 2 | `rollout.engine.tensor_parallel_size=2 placement.rollout_gpus=2`: an engine over two GPUs |
| – | does not fit with any of them |

{tables}
On one GPU engine and learner share it (`{shared}`, and the smallest
`rollout.engine.gpu_memory_utilization` of 0.3, 0.4, 0.5 and 0.6 that holds one trajectory). Memory of a GPU is what its
driver reports ({reported}), of which 5 % are left to gaps.

Your own settings, before any GPU is taken:

```
dynframe check configs/sd_grpo_qwen3_vl_8b.yaml placement.gpu=h100-80gb placement.node_memory_gib=1000
```

It prints what every GPU and the fullest node will hold, by name, and where that is too much the three keys that help
most, each tried. `placement.gpu_memory_gib` is for GPUs that have no name there (`dynframe config placement`); without
either, the GPU that is found counts.

## Main memory and disk

Of a node with 8 GPUs of 80 GB, at the settings of the tables. Most of it is the checkpoint that is being written while
training goes on.

{_hosts()}
A run keeps `trainer.keep_checkpoints` and two more checkpoints at once (the 4B as shipped: 291 GiB); `cache_dir` takes
two copies of the policy's weights (converted, cold-started), the hub's cache one.

{_quantised()}
How far plans are from measured peaks stands in [the measurements](../benchmarks/RESULTS.md#12-the-memory-plan); those
are of CPUs, at the real widths: no GPU has confirmed the tables yet.
"""


def _table(size: PublishedSize) -> str:
    rows = [f"| {count} | {' | '.join(_cell(size, count, gpu) for gpu in MEMORY.values())} |" for count in NUMBERS]
    heading = f"| GPUs | {' | '.join(MEMORY)} |\n|{'---|' * (len(MEMORY) + 1)}"
    return f"## {_shown(size)}\n\n{heading}\n" + "\n".join(rows) + "\n"


def _cell(size: PublishedSize, count: int, gpu: str) -> str:
    fit = first_fit(size, count, gpu)
    return fit.told if fit else "–"


def _hosts() -> str:
    rows = []
    for name in SIZES:
        size = published_size(*name)
        fit = first_fit(size, 8, MEMORY["80 GB"])
        if fit is None:
            continue
        shapes = structure(size.family.model_type, size.name)
        trained = shapes.trained(freeze_vision=True)
        checkpoint = shapes.parameters * 2 + trained * 12
        node = fit.plan.places[-1]
        rows.append(
            f"| {_shown(size)} | {shapes.parameters / 1e9:.2f} B | {node.num_bytes / GIB:.0f} GiB | "
            f"{node.largest.name}: {node.largest.gib:.0f} GiB | {checkpoint / 1e9:.0f} GB |\n"
        )
    return "| policy | parameters | main memory | of which | one checkpoint |\n|---|---|---|---|---|\n" + "".join(rows)


def _quantised() -> str:
    """The section on frozen weights in 4 bits: gibibytes of the language layers' products, as they are and would be."""
    rows = []
    for name in SIZES:
        language = structure(*name).language
        weights = language.layers * sum(given * taken for given, taken in language.products.values())
        now, then = weights * 2 / GIB, weights * NF4_BITS / 8 / GIB
        rows.append(f"| {_shown(published_size(*name))} | {now:.1f} GiB | {then:.1f} GiB | {now - then:.1f} GiB |\n")
    table = "| policy | bfloat16 | 4 bits | less |\n|---|---|---|---|\n" + "".join(rows)
    return f"""## Frozen weights in 4 bits

LoRA here keeps the frozen weights in bfloat16. QLoRA (Dettmers et al., arXiv:2305.14314) keeps those of the language
model's products as 4-bit NormalFloat, with its constants 4.127 bits each, and makes them bfloat16 again inside every
product. It is not built; per learner it would bring

{table}
so the 7B and the 8B would leave a GPU of 24 GB more than half of its memory for activations, where their weights now
take nearly all of it; an engine in turns with the learner has room there for its weights in bfloat16, and little else.
Nothing changes for activations, embeddings, tower and updates. The engine would have to hold the 4-bit values, written
out in bfloat16, with updates added: else engine and learner are two policies, and importance ratios correct for
rounding. Every product of the learner takes longer; bitsandbytes and torchao have kernels for it.
"""


def _shown(size: PublishedSize) -> str:
    """A size's name without its owner."""
    return size.repository.partition("/")[2].removesuffix("-Instruct")


def first_fit(size: PublishedSize, count: int, gpu: str) -> Fit | None:
    """The first setting that fits; None: none does."""
    hardware = Hardware(gpu_gib=GPUS[gpu], gpu_name=gpu)
    tried = [*product(CONTEXTS, SACRIFICES), *product((*CONTEXTS, SHORTEST), (LORA,))]
    for context, sacrifice in tried:
        for told, config in _configurations(size, count, context, sacrifice):
            plan = memory_plan(config, structure(size.family.model_type, size.name), hardware)
            if plan.fits:
                kept = ", kept" if plan.recomputed == "none" else ""
                return Fit(f"{context // 1024}k: {told}{kept}", plan)
    return None


def _configurations(
    size: PublishedSize, count: int, context: int, sacrifice: Sacrifice
) -> Iterator[tuple[str, RunConfig]]:
    """The ways to lay out engines and learners over so many GPUs."""
    config = _with(_base(size.family.model_type), context, sacrifice)
    if count == 1:
        for share in (0.3, 0.4, 0.5, 0.6):
            yield sacrifice.told, _laid_out(config, 1, 1, share, **SHARED)
        if sacrifice is LORA:
            turns = replace(config, placement=replace(config.placement, **SHARED, share_gpus="turns"))
            eager = replace(turns, rollout=replace(turns.rollout, engine=_eager(turns.rollout.engine)))
            for told, layout in (("turns", turns), ("turns, eager", eager)):
                for share in TURNS:
                    yield f"{sacrifice.told}, {told}", _laid_out(layout, 1, 1, share, **SHARED)
        return
    engines = 2 if count == 8 else 1
    yield sacrifice.told, _laid_out(config, engines, count - engines, 0.9)
    if count >= 4:
        split = _laid_out(config, engines // 2 or 1, count - 2, 0.9, rollout_gpus=2.0)
        rollout = replace(split.rollout, engine=replace(split.rollout.engine, tensor_parallel_size=2))
        yield f"{sacrifice.told}, tp 2", replace(split, rollout=rollout)


def _eager(engine: EngineConfig) -> EngineConfig:
    """Without CUDA graphs."""
    return replace(engine, enforce_eager=True)


def _with(config: RunConfig, context: int, sacrifice: Sacrifice) -> RunConfig:
    loss = replace(config.algorithm.loss, kl_beta=config.algorithm.loss.kl_beta if sacrifice.has_reference else 0.0)
    return replace(
        config,
        algorithm=replace(config.algorithm, loss=loss),
        policy=replace(config.policy, lora=replace(config.policy.lora, rank=sacrifice.lora_rank)),
        rollout=replace(config.rollout, engine=replace(config.rollout.engine, max_model_len=context)),
        learner=replace(
            config.learner,
            micro_batch=1,
            micro_tokens=context,
            zero_stage=sacrifice.zero_stage,
            activation_checkpointing=AUTO,
            deepspeed_config=OFFLOAD if sacrifice.is_offloaded else "",
        ),
    )


def _laid_out(
    config: RunConfig,
    engines: int,
    ranks: int,
    utilization: float,
    rollout_gpus: float = 1.0,
    learner_gpus: float = 1.0,
) -> RunConfig:
    engine = replace(config.rollout.engine, gpu_memory_utilization=utilization)
    per_rank = -(-config.rollout.tasks_per_step // ranks)
    return replace(
        config,
        rollout=replace(config.rollout, num_workers=engines, tasks_per_step=per_rank * ranks, engine=engine),
        learner=replace(config.learner, num_ranks=ranks),
        placement=replace(config.placement, rollout_gpus=rollout_gpus, learner_gpus=learner_gpus),
    )


@cache
def _base(model_type: str) -> RunConfig:
    return load_config([HERE.parent / CONFIGS[model_type]], [])


@cache
def structure(model_type: str, name: str) -> Structure:
    """A published size's shapes, with our kernel."""
    size, frames = published_size(model_type, name), kernel_frames(_base(model_type).policy)
    return read_structure(model_config(size), size.repository, init_frames=frames)


if __name__ == "__main__":
    main()
