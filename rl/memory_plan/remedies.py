"""Which keys would help most where a plan does not fit: each is set, and the plan made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rl.config.errors import ConfigError
from rl.config.installation import found_file
from rl.config.learner import LearnerConfig
from rl.config.run import RunConfig, without_reference
from rl.memory_plan.record import GIB, MemoryPlan

LORA_RANK = 32  # one of the usual
OFFLOAD = "configs/deepspeed_zero2_offload.json"

Plan = Callable[[RunConfig], MemoryPlan]


@dataclass(frozen=True, slots=True)
class Remedy:
    """A key at another value, and what comes of it."""

    setting: str  # "learner.zero_stage=3"
    saved: float  # bytes of the fullest place, that is too full
    fits: bool  # with it alone

    def __str__(self) -> str:
        return f"{self.setting} saves {self.saved / GIB:.1f} GiB{' and fits' if self.fits else ''}"


def remedies(config: RunConfig, plan: MemoryPlan, make_plan: Plan, count: int = 3) -> list[Remedy]:
    """The settings that save most of what is too much, the best first; of each key the first value that fits, or else
    the one that saves most."""
    found: dict[str, Remedy] = {}
    for setting, other in _tried(config, make_plan):
        key, remedy = setting.partition("=")[0], Remedy(setting, _saved(plan, other), other.fits)
        before = found.get(key)
        if other.lacking < plan.lacking and (before is None or (not before.fits and _order(remedy) < _order(before))):
            found[key] = remedy
    return sorted(found.values(), key=_order)[:count]


def _order(remedy: Remedy) -> tuple[bool, float]:
    return not remedy.fits, -remedy.saved


def _saved(plan: MemoryPlan, other: MemoryPlan) -> float:
    """Bytes by which the place that lacks most becomes lighter."""
    before = max((place for place in plan.places if not place.fits), key=lambda place: place.lacking, default=None)
    if before is None:  # an engine's share is too small for it
        return plan.lacking
    same = [place for place in other.places if place.name == before.name] or list(other.places)
    return before.num_bytes - max(place.num_bytes for place in same)


def _tried(config: RunConfig, make_plan: Plan) -> Iterator[tuple[str, MemoryPlan]]:
    for setting, changed in _settings(config):
        try:
            yield setting, make_plan(changed())
        except ConfigError:  # not together with what else is configured
            continue


def _settings(config: RunConfig) -> Iterator[tuple[str, Callable[[], RunConfig]]]:
    """Keys that lower memory, each at the next value."""
    learner, placement = config.learner, config.placement
    for stage in range(learner.zero_stage + 1, 4):
        yield f"learner.zero_stage={stage}", lambda stage=stage: _learner(config, zero_stage=stage)
    for parts in _recomputing_more(learner):
        setting = f"learner.activation_checkpointing={parts}"
        yield setting, lambda parts=parts: _learner(config, activation_checkpointing=parts)
    longest = config.longest_sample
    if learner.micro_batch > 1 and (not learner.micro_tokens or learner.micro_tokens > longest):
        most = max(longest, (learner.micro_tokens or learner.micro_batch * longest) // 2)
        yield f"learner.micro_tokens={most}", lambda: _learner(config, micro_tokens=most)
    if placement.learner_gpus and learner.num_ranks % (split := 2 * learner.sequence_parallel) == 0:
        yield f"learner.sequence_parallel={split}", lambda: _learner(config, sequence_parallel=split)
    if learner.micro_batch > 1:
        yield "learner.micro_batch=1", lambda: _learner(config, micro_batch=1)
    if not learner.freeze_vision:
        yield "learner.freeze_vision=true", lambda: _learner(config, freeze_vision=True)
    if not config.policy.lora.rank:
        yield f"policy.lora.rank={LORA_RANK}", lambda: _with_lora(config)
    if placement.learner_gpus and not learner.deepspeed_config and found_file(OFFLOAD).is_file():
        yield f"learner.deepspeed_config={OFFLOAD}", lambda: _learner(config, deepspeed_config=OFFLOAD)
    if learner.num_ranks > 1 and not placement.learner_gpus:
        half = learner.num_ranks // 2
        yield f"learner.num_ranks={half}", lambda: _learner(config, num_ranks=half)
    if placement.learner_gpus:
        double = 2 * learner.num_ranks
        yield f"learner.num_ranks={double}", lambda: _learner(config, num_ranks=double)
    if config.algorithm.loss.kl_beta:
        yield "algorithm.loss.kl_beta=0", lambda: without_reference(config)
    if config.policy.dtype == "float32":
        yield "policy.dtype=bfloat16", lambda: replace(config, policy=replace(config.policy, dtype="bfloat16"))
    yield from _of_engines(config)


def _recomputing_more(learner: LearnerConfig) -> tuple[str, ...]:
    """Values of learner.activation_checkpointing that leave less; what `auto` has chosen already helps nobody."""
    language, vision = learner.recomputes_language, learner.recomputes_vision
    if learner.freeze_vision:
        return () if language else ("language",)
    alone = () if language or vision else ("vision", "language")
    return (*alone, "all") if not (language and vision) else ()


def _of_engines(config: RunConfig) -> Iterator[tuple[str, Callable[[], RunConfig]]]:
    engine, placement, rollout = config.rollout.engine, config.placement, config.rollout
    shorter = 3 * engine.max_model_len // 4
    yield f"rollout.engine.max_model_len={shorter}", lambda: _engine(config, max_model_len=shorter)
    if placement.rollout_gpus:
        for share in (0.9, 0.45, 0.3):
            if abs(share - engine.gpu_memory_utilization) > 0.01:
                setting = f"rollout.engine.gpu_memory_utilization={share:g}"
                yield setting, lambda share=share: _engine(config, gpu_memory_utilization=share)
        split = 2 * engine.tensor_parallel_size
        yield (
            f"rollout.engine.tensor_parallel_size={split} placement.rollout_gpus={split}",
            lambda: _split(config, split),
        )
    else:
        half = engine.kv_cache_bytes // 2
        yield f"rollout.engine.kv_cache_bytes={half}", lambda: _engine(config, kv_cache_bytes=half)
    if rollout.num_workers > 1 and not placement.rollout_gpus:
        fewer = rollout.num_workers // 2
        yield f"rollout.num_workers={fewer}", lambda: replace(config, rollout=replace(rollout, num_workers=fewer))
    half = config.video.frame_cache_bytes // 2
    yield (
        f"video.frame_cache_bytes={half}",
        lambda: replace(config, video=replace(config.video, frame_cache_bytes=half)),
    )


def _learner(config: RunConfig, **changed: object) -> RunConfig:
    return replace(config, learner=replace(config.learner, **changed))


def _with_lora(config: RunConfig) -> RunConfig:
    lora = replace(config.policy.lora, rank=LORA_RANK)
    return replace(config, policy=replace(config.policy, lora=lora))


def _engine(config: RunConfig, **changed: object) -> RunConfig:
    return replace(config, rollout=replace(config.rollout, engine=replace(config.rollout.engine, **changed)))


def _split(config: RunConfig, split: int) -> RunConfig:
    """Each engine over so many GPUs."""
    placed = replace(config.placement, rollout_gpus=float(split))
    rollout = replace(config.rollout, engine=replace(config.rollout.engine, tensor_parallel_size=split))
    return replace(config, placement=placed, rollout=rollout)
