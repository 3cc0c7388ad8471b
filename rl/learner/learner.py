"""One learner rank: scored groups in, optimizer steps, whole weights out. No Ray.

Everything public is collective: all ranks call the same methods in the same order, each with its own samples. The loss
of an optimizer step is one sum over the tokens of all ranks with denominators agreed beforehand (rl.algorithm.loss), so
stage, number of ranks and micro-batch size do not change the gradient (rl.learner.engine).

Legend: P groups of this rank · G siblings · B sequences of a micro-batch · T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl.algorithm.advantages import rules_at
from rl.algorithm.batch import build_training_samples
from rl.algorithm.learner_batch import LearnerBatch
from rl.algorithm.packing import Limits
from rl.checkpoint.snapshot import Snapshot
from rl.config.algorithm import AlgorithmConfig
from rl.config.learner import LearnerConfig, OptimizerConfig
from rl.config.policy import PolicyConfig
from rl.config.run import RunConfig
from rl.learner.digest import tensors_digest, weights_digest
from rl.learner.engine import TrainingEngine, join_ranks
from rl.learner.frozen_trunk import FrozenTrunk, require_equal_trunks
from rl.learner.metrics import Tally, tally_tower, tally_work
from rl.learner.mini_batch import MiniBatch, build_mini_batch, consecutive_parts, sampled_logprobs
from rl.learner.objective import Objective
from rl.learner.policy_copy import PolicyCopy, copy_policy, place_weights
from rl.learner.rank_files import Layout
from rl.learner.sequence_parallel import SequenceParallel, attend_in_parallel, join_sequence_group
from rl.learner.settings import learning_rate
from rl.learner.shared_videos import SharedVideos
from rl.learner.state import capture_state, load_state, optimizer_tensors
from rl.learner.throughput import peak_tflops, throughput, workload
from rl.policy.flops import training_flops
from rl.policy.lora import add_lora, without_updates
from rl.policy.model import freeze_vision, map_policy, recompute_activations, save_all_but_weights
from rl.policy.processor import Processor
from rl.policy.structure import structure_of
from rl.trajectory import LearnerUpdate, ScoredGroup, TrainingSample
from rl.weight_transfer.description import WeightTensor

LossOf = Callable[[MiniBatch, LearnerBatch, int], Tensor]  # of a micro-batch and its number


class Learner:
    """The policy in training.

    learner = Learner(policy_dir, policy=..., learner=..., algorithm=..., temperature=1.0, total_steps=100, ...)
    learner.learn(scored_groups)             # -> LearnerUpdate
    for name, tensor in learner.named_weights(): ...
    """

    def __init__(
        self,
        policy_dir: str | Path,
        *,
        policy: PolicyConfig,
        learner: LearnerConfig,
        algorithm: AlgorithmConfig,
        temperature: float,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
        master_addr: str = "127.0.0.1",
        master_port: int = 29500,
        seed: int = 0,
    ) -> None:
        """Join the other ranks and load the policy.

        Args:
            policy_dir: a policy folder of ours; also the reference policy where `algorithm.loss.kl_beta` > 0.
            temperature: trajectories are sampled at.
            total_steps: optimizer steps the learning-rate schedule spans.
        Raises:
            ConfigError: `learner.deepspeed_config` cannot be read, `learner.sequence_parallel` does not divide heads.
        """
        if policy.lora.freezes_tower:
            learner = replace(learner, freeze_vision=True)
        self._config, self._loss = learner, algorithm.loss
        self._rules, self._lora = algorithm.advantage, policy.lora
        self._total_steps, self._steps = total_steps, 0
        self._layout = Layout(learner.zero_stage, world_size, rank)
        self._device = join_ranks(rank, world_size, master_addr, master_port, learner.timeout_s)
        torch.manual_seed(seed + rank)
        self._peak_tflops = peak_tflops(torch.cuda.get_device_name()) if self._device.type == "cuda" else None
        self._structure = structure_of(policy_dir, policy)
        self._processor = Processor.from_pretrained(policy_dir, policy.scenes)
        mapped = partial(map_policy, policy_dir, policy.scenes)
        self._parallel = join_sequence_group(learner.sequence_parallel, rank, world_size)
        trained = _prepared(mapped(), policy, learner, self._parallel, seed)
        self._engine = TrainingEngine(trained, learner, policy.dtype, self._device, world_size)
        reference = self._reference(mapped) if algorithm.loss.kl_beta > 0 else None
        self._trunk = self._frozen_trunk(reference)
        self._objective = Objective(
            self._engine.deepspeed,
            algorithm.loss,
            reference=reference,
            allowed_V=torch.from_numpy(self._processor.allowed_token_mask()).to(self._device),
            temperature=temperature,
            world_size=world_size // self._parallel.size,
            parallel=self._parallel,
            trunk=self._trunk,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps so far, skipped ones included."""
        return self._steps

    def learn(self, scored: Sequence[ScoredGroup], version: int | None = None, step: int = 0) -> LearnerUpdate:
        """Split and credit this rank's groups by the rules of the step, then `update`; the metrics are of all ranks."""
        truncated, rules = self._loss.mask_truncated, rules_at(self._rules, step)
        samples_PG = [build_training_samples(group, rules, mask_truncated=truncated) for group in scored]
        metrics, logprobs = self.update([s for samples_G in samples_PG for s in samples_G if s is not None], version)
        rest = iter(logprobs)
        logprobs_PG = tuple(tuple(None if s is None else next(rest) for s in samples_G) for samples_G in samples_PG)
        digest = self.optimizer_digest() if self._is_digested() else ""
        return LearnerUpdate(metrics, logprobs_PG, int(metrics["update/optimizer_steps"]), digest)

    def update(
        self, samples: Sequence[TrainingSample], version: int | None = None
    ) -> tuple[dict[str, float], list[np.ndarray | None]]:
        """Take `learner.updates_per_step` optimizer steps, each on its share of the samples.

        An optimizer step without a token to learn from on any rank is not taken; one whose gradient is NaN or infinite
        is skipped and counted. Parity compares log-probs while the policy is still the one that sampled.

        Args:
            version: of the policy that learns: tokens of older ones are no matter of parity. None: all are its own.
        Returns:
            Metrics of all ranks; and of each sample those log-probs that parity compares, as in `LearnerUpdate`: they
            are kept from the passes that learn.
        """
        start, tally = time.perf_counter(), Tally(counts=self._parallel.counts)
        parts = [self._mini_batch(part) for part in consecutive_parts(samples, self._config.updates_per_step)]
        on_policy: list[tuple[LearnerBatch, Tensor]] = []  # of the first part, by the policy that sampled
        for index, (part, old) in enumerate(zip(parts, self._old_logprobs(parts), strict=True)):
            loss = partial(self._objective.policy_loss, tally=tally, on_policy=on_policy if index == 0 else None)
            self._step(part, partial(_against, old, partial(loss, version=version)), tally)
        return self._numbers(tally, parts, samples, start), sampled_logprobs(parts, on_policy)

    def supervise(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """One optimizer step towards the samples' own tokens; "loss/nll" is their mean negative log-prob in nat."""
        start, tally = time.perf_counter(), Tally(counts=self._parallel.counts)
        part = self._mini_batch(samples)
        self._step(part, lambda part, batch, _: self._objective.supervised_loss(part, batch, tally), tally)
        return self._numbers(tally, [part], samples, start)

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """The current policy's log-prob of every token after the first, per sample; 0 where it may not be sampled."""
        part, rows = self._mini_batch(samples), []
        with part.prepared() as batches:
            for batch in batches:
                logp_BT, lengths_B = self._objective.logprobs(batch), (batch.places_BT >= 0).sum(1)
                rows += [row_T[1 : int(n)].tolist() for row_T, n in zip(logp_BT, lengths_B, strict=True)]
        return part.by_sample(rows)

    def losses(self, samples: Sequence[TrainingSample]) -> list[tuple[float, int]]:
        """Of each sample the summed negative log-prob of its learned tokens, in nat, and how many they are; nothing is
        learned. What `supervise` would report is the quotient over all samples."""
        part, rows = self._mini_batch(samples), []
        with part.prepared() as batches:
            for batch in batches:
                rows += self._objective.losses(batch)
        return part.by_sample(rows)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._device

    def described_weights(self, *, trainable_only: bool = False) -> list[WeightTensor]:
        """What `named_weights` gives, in the same order."""
        return self._engine.described_weights(trainable_only=trainable_only)

    def named_weights(
        self, *, trainable_only: bool = False, wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters under their Hugging Face names. At ZeRO 3 every rank has to run through all of them.

        Args:
            wanted: names that this rank has a use for; the others are gathered and not given. None: all.
        """
        return self._engine.named_weights(trainable_only=trainable_only, wanted=wanted)

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights."""
        return weights_digest(self.named_weights())

    def optimizer_digest(self) -> str:
        """Of this rank's master weights and AdamW's state (rl.learner.digest.tensors_digest)."""
        return tensors_digest(optimizer_tensors(self._engine.deepspeed, self._engine.adamw, self._layout))

    def offload(self, *, states: bool = True) -> None:
        """Give memory of the GPU up; what needs no gradient goes on: exports, digests, captures.

        Args:
            states: masters, moments and gradients, too; else only what no tensor lies in.
        """
        self._engine.offload(states=states)

    def reload(self) -> None:
        """Take it back."""
        self._engine.reload()

    def capture(self) -> Snapshot:
        """Copy what a checkpoint needs to the CPU: this rank's state, and its share of the policy's files.

        Training may continue at once; the copies are written by `Snapshot.write`, from any thread. They take as much
        memory as the optimizer's state and this rank's files of the policy, until they are written.
        """
        state = capture_state(self._engine.deepspeed, self._engine.adamw, self._layout, self._steps)
        return Snapshot(state, self._copied_policy().write)

    def save(self, folder: str | Path) -> None:
        """Write everything needed to resume into `folder`; returns when all ranks have."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        capture_state(self._engine.deepspeed, self._engine.adamw, self._layout, self._steps).write(Path(folder))
        dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Resume from what `save` wrote: in the same layout bit for bit, in another from the same masters and moments.

        Raises:
            LearnerStateError: it is not there, is damaged, or is another policy's.
        """
        self._steps = load_state(Path(folder), self._engine.deepspeed, self._engine.adamw, self._layout)
        dist.barrier()

    def export_policy(self, folder: str | Path) -> None:
        """Write the current policy as a Hugging Face folder, which all ranks must see; each writes its files."""
        self._copied_policy().write(Path(folder))
        dist.barrier()

    def close(self) -> None:
        """Leave the group of ranks."""
        self._engine.close()
        dist.destroy_process_group()

    def _is_digested(self) -> bool:
        """Whether the step just learned is one of every `learner.digest_every` of the run, also after a resume."""
        every, steps = self._config.digest_every, self._steps // self._config.updates_per_step
        return every > 0 and steps % every == 0

    def _copied_policy(self) -> PolicyCopy:
        engine, write_rest = self._engine, partial(save_all_but_weights, self._engine.module, self._processor)
        return copy_policy(engine.named_weights, place_weights(engine.whole_shapes()), self._layout, write_rest)

    def _reference(self, mapped: Callable[[], nn.Module]) -> Callable[..., Any]:
        """The policy that the run began with; with LoRA alone it is the one in training without its updates."""
        if self._lora.rank and not self._lora.full:
            return without_updates(self._engine.deepspeed, self._engine.module)
        model = mapped()
        attend_in_parallel(model, self._parallel)
        return self._engine.add_reference(model)

    def _mini_batch(self, samples: Sequence[TrainingSample]) -> MiniBatch:
        learner = self._config
        return build_mini_batch(
            samples,
            Limits(learner.micro_batch, learner.micro_tokens),
            self._processor,
            self._device,
            shared_prefix=learner.shared_prefix == "auto",
            shared_videos=not learner.freeze_vision and self._parallel.size == 1,
            parallel=self._parallel,
        )

    def _shared_videos(self, part: MiniBatch) -> SharedVideos:
        """Blocks that micro-batches of an optimizer step have in common, encoded. Their graph is kept where it is no
        larger than a micro-batch's, unless the tower is recomputed anyway or weights are gathered for every pass."""
        recomputed = self._config.recomputes_vision or self._config.zero_stage == 3
        return SharedVideos(
            self._engine.deepspeed,
            [[self._processor.pack(frames) for frames in chunk] for chunk in part.shared],
            world_size=self._layout.world_size,
            keep_graph=len(part.shared) == 1 and not recomputed,
        )

    def _frozen_trunk(self, reference: Any) -> FrozenTrunk | None:
        """Of the vision towers of policy and reference, where it does not learn and its features are kept."""
        if not self._config.freeze_vision or not self._config.vision_cache_bytes:
            return None
        if isinstance(reference, nn.Module):  # else it is the policy itself, without updates
            require_equal_trunks(self._engine.module, reference)
        gathers = self._config.zero_stage == 3
        return FrozenTrunk(self._engine.deepspeed, self._config.vision_cache_bytes, self._device, gathers=gathers)

    def _old_logprobs(self, parts: Sequence[MiniBatch]) -> list[list[Tensor | None] | None]:
        """Per part and micro-batch, the log-probs ratios are taken against; None: the current ones, at the time.

        For a part None: the engine's. Recomputing needs a pass of its own only where the policy moves before the last
        micro-batch is seen.
        """
        if self._loss.old_logprobs == "engine":
            return [None] * len(parts)
        return [[None] * len(part) if len(parts) == 1 else self._recomputed(part) for part in parts]

    def _recomputed(self, part: MiniBatch) -> list[Tensor | None]:
        with part.prepared() as batches:
            return [self._objective.logprobs(batch, batch.loss_mask_BT) for batch in batches]

    def _numbers(
        self, tally: Tally, parts: Sequence[MiniBatch], samples: Sequence[TrainingSample], start: float
    ) -> dict[str, float]:
        """What an update reports, over all ranks; collective.

        Args:
            start: time.perf_counter() when it began.
        """
        paid = {"freeze_vision": self._config.freeze_vision, "reference": self._loss.kl_beta > 0, "lora": self._lora}
        work = workload(samples, (sharing for part in parts for batch in part.cut for sharing in batch))
        tally.sum("update/flops", training_flops(self._structure, work, **paid))
        tally_tower(tally, samples, self._objective.taken_tower_passes(), self._trunk)
        tally_work(tally, parts, samples, time.perf_counter() - start)
        numbers = tally.reduced(self._device)
        return numbers | throughput(numbers, ranks=self._layout.world_size, peak=self._peak_tflops)

    def _step(self, part: MiniBatch, loss: LossOf, tally: Tally) -> None:
        """One optimizer step, if there is anything to learn and the gradient is finite."""
        rate = learning_rate(self._steps, self._total_steps, self._config.optimizer)
        self._steps += 1
        tally.mean("update/lr", rate, 1)
        tally.sum("update/skipped_steps", 0)
        tally.sum("update/optimizer_steps", 0)
        if part.totals.num_tokens == 0:
            return
        shared = self._shared_videos(part)
        with self._objective.sharing(shared), part.prepared() as batches:
            losses = [lambda index=index: loss(part, next(batches), index) for index in range(len(part))]
            applied, norm = self._engine.step([*losses, *shared.losses()], rate)
            tally.peak("update/wait_seconds", batches.waited_s)
        if applied:
            tally.mean("grad/norm", norm, 1)
        if self._layout.rank == 0:
            tally.sum("update/optimizer_steps" if applied else "update/skipped_steps", 1)


def make_learner(
    config: RunConfig,
    policy_dir: str | Path,
    *,
    optimizer: OptimizerConfig,
    total_updates: int,
    rank: int,
    world_size: int,
    master_addr: str,
    master_port: int,
) -> Learner:
    """A rank from a run's configuration.

    Args:
        optimizer: of this stage: the cold start has its own.
        total_updates: optimizer steps of this stage.
    """
    return Learner(
        policy_dir,
        policy=config.policy,
        learner=replace(config.learner, optimizer=optimizer),
        algorithm=config.algorithm,
        temperature=config.rollout.temperature,
        total_steps=total_updates,
        rank=rank,
        world_size=world_size,
        master_addr=master_addr,
        master_port=master_port,
        seed=config.seed,
    )


def _against(
    old: Sequence[Tensor | None] | None, loss: Callable[..., Tensor], part: MiniBatch, batch: LearnerBatch, index: int
) -> Tensor:
    """The loss of a micro-batch, its ratios taken against `old`, as Learner._old_logprobs has it."""
    return loss(part, batch, batch.behavior_logprobs_BT if old is None else old[index])


def _prepared(
    model: nn.Module, policy: PolicyConfig, config: LearnerConfig, parallel: SequenceParallel, seed: int
) -> nn.Module:
    """The model in training mode, as `policy.lora`, `learner.freeze_vision` and `.activation_checkpointing` say."""
    if policy.lora.rank:
        add_lora(model, policy.lora, seed)
    elif config.freeze_vision:
        freeze_vision(model)
    recompute_activations(model, language=config.recomputes_language, vision=config.recomputes_vision)
    attend_in_parallel(model, parallel)
    return model.train()
