"""One learner rank: the policy inside a DeepSpeed engine. The door to deepspeed; no Ray.

Everything public is collective: all ranks call the same methods in the same order, each with its own samples. A rank
with fewer micro-batches than another makes up the difference with empty ones, which run through every part of the model
(the vision tower included) and teach nothing.

How gradients add up. The loss of an optimizer step is one sum over the tokens of all ranks with denominators agreed
beforehand (rl.algorithm.loss). DeepSpeed averages gradients over ranks, so every rank multiplies its loss by their
number; the accumulation boundary is set by hand, since micro-batches vary in number. Any stage, any number of ranks and
any micro-batch size then give the gradient of the whole batch.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl.algorithm.advantages import CreditRules
from rl.algorithm.batch import (
    LearnerBatch,
    build_training_samples,
    collate,
    loss_totals,
    micro_batches,
    num_micro_batches,
    sampled_values,
)
from rl.algorithm.loss import LossTotals, policy_loss, supervised_loss, token_weights
from rl.checkpoint.snapshot import Snapshot
from rl.config.algorithm import AlgorithmConfig
from rl.config.learner import LearnerConfig, OptimizerConfig
from rl.config.policy import PolicyConfig
from rl.config.run import RunConfig
from rl.learner.digest import tensors_digest
from rl.learner.metrics import Tally, tally_parity, tally_policy
from rl.learner.settings import deepspeed_settings, learning_rate, uses_cuda
from rl.learner.state import Layout, capture_state, load_state, optimizer_tensors
from rl.policy.model import freeze_vision, load_policy, save_policy, token_logprobs
from rl.policy.processor import Processor
from rl.trajectory import LearnerUpdate, ScoredGroup, TrainingSample

log = logging.getLogger(__name__)

GATHER_BYTES = 2**28  # ZeRO-3 weights made whole at a time
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, eq=False)
class MiniBatch:
    """This rank's part of one optimizer step."""

    batches: tuple[LearnerBatch, ...]  # equally many on every rank
    totals: LossTotals  # of all ranks
    order: tuple[int, ...]  # which sample each row is, batch after batch; the rows of empty ones, the last, are none

    def by_sample(self, rows: Iterable[Row]) -> list[Row]:
        """What was made row by row, in the order of the samples."""
        placed = dict(zip(self.order, rows, strict=False))
        return [placed[index] for index in range(len(self.order))]


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
        """Meet the other ranks and load the policy.

        Args:
            policy_dir: a policy folder of ours; also the reference policy where `algorithm.loss.kl_beta` > 0.
            temperature: trajectories are sampled at.
            total_steps: optimizer steps the learning-rate schedule spans.
        Raises:
            ConfigError: `learner.deepspeed_config` cannot be read.
        """
        self._config, self._loss, self._optimizing = learner, algorithm.loss, learner.optimizer
        self._rules = CreditRules(**asdict(algorithm.advantage))
        self._temperature, self._total_steps, self._steps = temperature, total_steps, 0
        self._layout = Layout(learner.zero_stage, world_size, rank)
        self._device = _meet(rank, world_size, master_addr, master_port, learner.timeout_s)
        torch.manual_seed(seed + rank)
        self._processor = Processor.from_pretrained(policy_dir, policy.scenes)
        self._allowed_V = torch.from_numpy(self._processor.allowed_token_mask()).to(self._device)
        self._load = lambda: load_policy(policy_dir, policy.scenes, policy.dtype)
        self._reference: nn.Module | None = None
        self._engine, self._adamw = _start_engine(self._prepared_policy(), learner, policy.dtype)

    def learn(self, scored: Sequence[ScoredGroup]) -> LearnerUpdate:
        """Split and credit this rank's groups, then `update`; the metrics are of all ranks."""
        truncated = self._loss.mask_truncated
        samples_PG = [build_training_samples(group, self._rules, mask_truncated=truncated) for group in scored]
        metrics, logprobs = self.update([s for samples_G in samples_PG for s in samples_G if s is not None])
        rest = iter(logprobs)
        logprobs_PG = tuple(tuple(None if s is None else next(rest) for s in samples_G) for samples_G in samples_PG)
        return LearnerUpdate(metrics, logprobs_PG, self.optimizer_digest())

    def update(self, samples: Sequence[TrainingSample]) -> tuple[dict[str, float], list[np.ndarray | None]]:
        """Take `learner.updates_per_step` optimizer steps, each on its share of the samples.

        An optimizer step without a token to learn from on any rank is not taken; one whose gradient is NaN or infinite
        is skipped and counted. Parity compares log-probs while the policy is still the one that sampled.

        Returns:
            Metrics of all ranks; and of each sample those log-probs that parity compares, as in `LearnerUpdate`: they
            are kept from the passes that learn.
        """
        start, tally, seen_BT = time.perf_counter(), Tally(), []
        parts = [self._mini_batch(part) for part in _shares(samples, self._config.updates_per_step)]
        old = self._old_logprobs(parts)
        for index, (part, old_of_part) in enumerate(zip(parts, old, strict=True)):
            on_policy = seen_BT if index == 0 else None
            self._step(part, partial(self._policy_loss, part, old_of_part, tally, on_policy), tally)
        self._describe(parts, samples, start, tally)
        return tally.reduced(self._device), _rows_seen(parts, seen_BT)

    def supervise(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """One optimizer step towards the samples' own tokens; "loss/nll" is their mean negative log-prob in nat."""
        start, tally = time.perf_counter(), Tally()
        part = self._mini_batch(samples)
        self._step(part, partial(self._supervised_loss, part, tally), tally)
        self._describe([part], samples, start, tally)
        return tally.reduced(self._device)

    @torch.no_grad()
    def logprobs(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """The current policy's log-prob of every token after the first, per sample; 0 where it may not be sampled."""
        part, rows = self._mini_batch(samples), []
        for batch in part.batches:
            logp_BT, _ = self._score(self._engine, batch, None)
            rows += [
                row_T[1 : int(n)].tolist() for row_T, n in zip(logp_BT, batch.attention_mask_BT.sum(1), strict=True)
            ]
        return part.by_sample(rows)

    @property
    def steps(self) -> int:
        """Optimizer steps so far, skipped ones included."""
        return self._steps

    def named_weights(self, *, trainable_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters under their Hugging Face names. At ZeRO 3 every rank has to run through all of them."""
        named = [
            (name, p) for name, p in self._engine.module.named_parameters() if p.requires_grad or not trainable_only
        ]
        if self._config.zero_stage < 3:
            yield from ((name, parameter.detach()) for name, parameter in named)
            return
        for bucket in _buckets(named, GATHER_BYTES):
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
                whole = [(name, parameter.detach().clone()) for name, parameter in bucket]
            yield from whole

    def digest(self) -> str:
        """SHA-256 over names, shapes and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in self.named_weights():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def capture(self) -> Snapshot:
        """Copy what a checkpoint needs to the CPU: this rank's state and, on rank 0, the whole policy.

        Training may go on at once; the copies are written by `Snapshot.write`, from any thread. They take as much
        memory as the optimizer's state, and on rank 0 the policy once more, until they are written.
        """
        state = capture_state(self._engine, self._adamw, self._layout, self._steps)
        return Snapshot(state, self._captured_policy())

    def optimizer_digest(self) -> str:
        """Of this rank's master weights and AdamW's state (rl.tracking.fingerprint.tensors_digest)."""
        return tensors_digest(optimizer_tensors(self._engine, self._adamw, self._layout))

    def save(self, folder: str | Path) -> None:
        """Write everything needed to go on into `folder`; returns when all ranks have."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        capture_state(self._engine, self._adamw, self._layout, self._steps).write(Path(folder))
        dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Go on from what `save` wrote: in the layout it was written in, bit for bit; in another, from the same masters
        and moments.

        Raises:
            LearnerStateError: it is not there, is damaged, or is another policy's.
        """
        self._steps = load_state(Path(folder), self._engine, self._adamw, self._layout)
        dist.barrier()

    def export_policy(self, folder: str | Path) -> None:
        """Write the current policy as a Hugging Face folder (rank 0 writes)."""
        write = self._captured_policy()
        if write is not None:
            write(Path(folder))
        dist.barrier()

    def close(self) -> None:
        """Leave the group of ranks."""
        self._engine.destroy()
        dist.destroy_process_group()

    def _captured_policy(self) -> Callable[[Path], None] | None:
        """On rank 0 a copy of the weights, waiting to be written; the others take part in the gathering."""
        first = self._layout.rank == 0
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in self.named_weights() if first}
        if not first:
            return None
        return partial(save_policy, self._engine.module, self._processor, state_dict=weights)

    def _prepared_policy(self) -> nn.Module:
        model = self._load()
        if self._config.freeze_vision:
            freeze_vision(model)
        if self._config.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()

    def _mini_batch(self, samples: Sequence[TrainingSample]) -> MiniBatch:
        """Micro-batches of similar length, longest first; their number and the denominators are agreed upon."""
        size, mine = self._config.micro_batch, loss_totals(samples)
        most = self._all_reduce([num_micro_batches(len(samples), size)], dist.ReduceOp.MAX)[0]
        totals = LossTotals(*self._all_reduce([mine.num_sequences, mine.num_tokens], dist.ReduceOp.SUM))
        order = _by_length(samples)
        cut = micro_batches([samples[index] for index in order], size, max(most, 1))
        return MiniBatch(tuple(collate(batch, self._processor, self._device) for batch in cut), totals, order)

    def _old_logprobs(self, parts: Sequence[MiniBatch]) -> list[list[Tensor | None]]:
        """Per micro-batch, the log-probs ratios are taken against; None: the current ones, at the time.

        Recomputing needs a pass of its own only where the policy moves before the last micro-batch is seen.
        """
        if self._loss.old_logprobs == "engine":
            return [[batch.behavior_logprobs_BT for batch in part.batches] for part in parts]
        if len(parts) == 1:
            return [[None] * len(parts[0].batches)]
        with torch.no_grad():
            return [[self._score(self._engine, b, b.loss_mask_BT)[0] for b in part.batches] for part in parts]

    def _step(self, part: MiniBatch, loss_of: Callable[[int], Tensor], tally: Tally) -> None:
        """Accumulate over micro-batches, then one optimizer step, if there is anything to learn and it is finite."""
        rate, last = learning_rate(self._steps, self._total_steps, self._optimizing), len(part.batches) - 1
        self._steps += 1
        tally.mean("update/lr", rate, 1)
        tally.sum("update/skipped_steps", 0)
        if part.totals.num_tokens == 0:
            return
        for group in self._adamw.param_groups:
            group["lr"] = rate
        for index in range(len(part.batches)):
            self._engine.set_gradient_accumulation_boundary(index == last)
            self._engine.backward(loss_of(index) * self._layout.world_size)
        applied, norm = self._apply()
        if applied:
            tally.mean("grad/norm", norm, 1)
        elif self._layout.rank == 0:
            tally.sum("update/skipped_steps", 1)

    def _apply(self) -> tuple[bool, float]:
        """Clip and step; (was the step taken, gradient norm before clipping)."""
        if self._config.zero_stage == 0:  # DeepSpeed looks for NaN at stages 1-3 only
            grads = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = float(nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self._engine.module.zero_grad(set_to_none=True)
                return False, norm
            self._engine.step()
            return True, norm
        self._engine.step()
        return self._engine.was_step_applied(), float(self._engine.get_global_grad_norm())

    def _policy_loss(
        self, part: MiniBatch, old: Sequence[Tensor | None], tally: Tally, seen_BT: list[Tensor] | None, i: int
    ) -> Tensor:
        """The loss of micro-batch `i`; its log-probs go to `seen_BT` while the policy is the one that sampled."""
        batch, options = part.batches[i], self._loss
        logp_BT, entropy_BT = self._score(self._engine, batch, batch.loss_mask_BT)
        weights_BT = self._weights(batch, part.totals, options.normaliser)
        terms = policy_loss(
            logp_BT,
            logp_BT.detach() if old[i] is None else old[i],
            batch.advantages_BT,
            weights_BT,
            batch.loss_mask_BT,
            ratio=options.ratio,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            behavior_logp_BT=batch.behavior_logprobs_BT,
            tis_cap=options.tis_cap,
            ref_logp_BT=self._reference_logprobs(batch),
            kl_beta=options.kl_beta,
        )
        kl, share = (weights_BT * terms.kl_BT).sum(), self._share(part)
        tally.mean("loss/surrogate", terms.loss.detach() - options.kl_beta * kl, share)
        tally.mean("loss/kl", kl, share)
        tally_policy(tally, batch, terms, entropy_BT)
        if seen_BT is not None:
            tally_parity(tally, batch, logp_BT)
            seen_BT.append(logp_BT.detach())
        return _loud(terms.loss, logp_BT)

    def _supervised_loss(self, part: MiniBatch, tally: Tally, i: int) -> Tensor:
        batch = part.batches[i]
        logp_BT, entropy_BT = self._score(self._engine, batch, batch.loss_mask_BT, temperature=1.0)
        weights_BT = self._weights(batch, part.totals, "token")
        loss = supervised_loss(logp_BT, weights_BT, batch.loss_mask_BT)
        tally.mean("loss/nll", loss.detach(), self._share(part))
        tally.mean("policy/entropy", entropy_BT[batch.loss_mask_BT].sum(), batch.loss_mask_BT.sum())
        return _loud(loss, logp_BT)

    def _share(self, part: MiniBatch) -> float:
        """A micro-batch's share of an optimizer step, so that sums over micro-batches and ranks count once."""
        return 1 / (len(part.batches) * self._layout.world_size)

    def _weights(self, batch: LearnerBatch, totals: LossTotals, normaliser: str) -> Tensor:
        constant = self._loss.constant_tokens
        return token_weights(
            batch.segment_ids_BT, batch.loss_mask_BT, totals, normaliser=normaliser, constant_tokens=constant
        )

    def _reference_logprobs(self, batch: LearnerBatch) -> Tensor | None:
        """Of the policy the run started from; loaded when first needed, never trained."""
        if self._loss.kl_beta == 0:
            return None
        if self._reference is None:
            self._reference = self._load().to(self._device).requires_grad_(False).eval()
        with torch.no_grad():
            return self._score(self._reference, batch, batch.loss_mask_BT)[0]

    def _score(
        self, model: nn.Module, batch: LearnerBatch, scored_BT: Tensor | None, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            model,
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.position_ids_3BT,
            batch.videos,
            allowed_V=self._allowed_V,
            temperature=self._temperature if temperature is None else temperature,
            scored_BT=scored_BT,
        )

    def _describe(
        self, parts: Sequence[MiniBatch], samples: Sequence[TrainingSample], start: float, tally: Tally
    ) -> None:
        tokens = sum(len(sample.token_ids) for sample in samples)
        places = sum(batch.input_ids_BT.numel() for part in parts for batch in part.batches)
        tally.sum("update/trajectories", len(samples))
        tally.sum("update/tokens", tokens)
        tally.sum("update/learned_tokens", sum(sum(sample.loss_mask) for sample in samples))
        tally.mean("update/padding_share", places - tokens, places)
        tally.peak("update/micro_batches", sum(len(part.batches) for part in parts))
        tally.peak("update/seconds", time.perf_counter() - start)

    def _all_reduce(self, values: list[int], op: Any) -> list[int]:
        tensor = torch.tensor(values, dtype=torch.long, device=self._device)
        dist.all_reduce(tensor, op=op)
        return tensor.tolist()


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


def _meet(rank: int, world_size: int, master_addr: str, master_port: int, timeout_s: float) -> torch.device:
    """Join the other ranks. Every variable is set: a missing one would send DeepSpeed looking for MPI."""
    cuda = uses_cuda()
    local_rank = rank % torch.cuda.device_count() if cuda else rank
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, world_size, local_rank, master_addr, master_port)), strict=True))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled on the spot
    _join(rank, world_size, master_addr, master_port, "nccl" if cuda else "gloo", timedelta(seconds=timeout_s))
    deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    if cuda:
        torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def _join(rank: int, world_size: int, master_addr: str, master_port: int, backend: str, timeout: timedelta) -> None:
    """The group of processes, met at a port that rank 0 opens on `master_addr` alone: torch would open it to everybody.

    Where that is loopback, so is all that ranks say to each other.
    """
    if dist.is_initialized():  # by an earlier learner of this process
        return
    listening = socket.create_server((master_addr, master_port)).detach() if rank == 0 else None
    if ipaddress.ip_address(socket.gethostbyname(master_addr)).is_loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore(
        master_addr, master_port, world_size, is_master=rank == 0, timeout=timeout, master_listen_fd=listening
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _start_engine(model: nn.Module, config: LearnerConfig, dtype: str) -> tuple[Any, torch.optim.AdamW]:
    """The engine, and the AdamW inside it. Weight decay spares vectors: biases and the gains of norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = config.optimizer
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=options.lr, betas=tuple(options.betas))
    settings = deepspeed_settings(config, dtype, sum(parameter.numel() for parameter in trained))
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=settings, dist_init_required=False)
    return engine, adamw


def _loud(loss: Tensor, logp_BT: Tensor) -> Tensor:
    """The loss; if it is not finite, one whose gradient is not either (clamp's is 0 at NaN), so the step is skipped."""
    return loss if torch.isfinite(loss) else logp_BT.sum() * math.nan


def _rows_seen(parts: Sequence[MiniBatch], seen_BT: Sequence[Tensor]) -> list[np.ndarray | None]:
    """Log-probs of every sample, in their order, from the micro-batches of the first part; None: not seen."""
    first, *later = parts
    rows = [row for pair in zip(first.batches, seen_BT, strict=False) for row in sampled_values(*pair)]
    rows = first.by_sample(rows) if rows else [None] * len(first.order)
    return rows + [None] * sum(len(part.order) for part in later)


def _by_length(samples: Sequence[TrainingSample]) -> tuple[int, ...]:
    """Indices, longest sample first."""
    return tuple(sorted(range(len(samples)), key=lambda index: (-len(samples[index].token_ids), index)))


def _shares(samples: Sequence[TrainingSample], count: int) -> list[Sequence[TrainingSample]]:
    """Consecutive parts, equal but for one sample; siblings stay together as far as possible."""
    ends = [round(len(samples) * index / count) for index in range(count + 1)]
    return [samples[first:last] for first, last in pairwise(ends)]


def _buckets(named: Sequence[tuple[str, nn.Parameter]], size: int) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Parameters in order, in lists of about `size` bytes when whole."""
    bucket, filled = [], 0
    for name, parameter in named:
        bucket.append((name, parameter))
        filled += getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if filled >= size:
            yield bucket
            bucket, filled = [], 0
    if bucket:
        yield bucket
