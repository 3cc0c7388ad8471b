"""Weights from device to device: links between learner ranks and engines, opened, used, given up where one fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import ray
from ray.exceptions import RayError

from actors.learner_group import LearnerGroup
from actors.rollout_group import PushCalls, RolloutWorkerGroup
from actors.worker.waiting import cause_of
from actors.worker_slot import WorkerHandle, WorkerSlot
from rl.config.learner import WeightSyncConfig
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.meeting import MeetingPoint

log = logging.getLogger(__name__)

Buckets = Sequence[tuple[WeightTensor, ...]]


class TransferError(RuntimeError):
    """Weights did not get from device to device: some engines hold a part of them, and sample nothing before others."""


class DeviceTransfer:
    """The links of one set of learners. One that failed is given up, and opened anew with whoever is there then.

    gloo and nccl: rank 0 sends to every worker of every engine. ipc: every rank sends to the engines beside it, which
    are dealt out over the ranks one by one (rl.config.trainer.engines_beside).
    """

    def __init__(
        self, learners: LearnerGroup, workers: RolloutWorkerGroup, config: WeightSyncConfig, transport: str, shards: int
    ) -> None:
        """
        Args:
            transport: gloo | nccl | ipc.
            shards: workers of each engine (rollout.engine.tensor_parallel_size).
        """
        self._learners, self._workers, self._config = learners, workers, config
        self._transport, self._shards = transport, shards
        self._linked: list[WorkerHandle] = []  # of the engines that have met the learners
        self._described: dict[bool, Buckets] = {}

    def send(
        self, slots: Sequence[WorkerSlot], version: int, *, everything: bool
    ) -> tuple[Buckets, dict[str, str], dict[str, list[str]]]:
        """Send weights to the engines in `slots`.

        Returns:
            What was sent; its checksums by name; and parameters of which an engine holds other values, by worker.
        Raises:
            TransferError: to one of them they did not get. A worker that died is replaced.
            LearnerError: a rank died or did not answer.
        """
        try:
            if self._linked != [slot.worker for slot in slots]:
                self._open(slots)
            buckets = self._buckets(everything)
            calls = self._workers.receive_weights(buckets, version, slots)
            sent = self._learners.send_weights(
                self._config.bucket_bytes, trainable_only=not everything, check=partial(self._give_up_if_failed, calls)
            )
            differing, causes = self._workers.collect_push(calls, version, timeout_s=self._config.timeout_s)
        except BaseException:
            self._linked = []
            raise
        causes |= {f"rank {rank}": why for rank, why in sent.items() if isinstance(why, str)}
        if causes or len(differing) < len(slots):
            self._linked = []
            raise TransferError("; ".join(f"{name}: {why}" for name, why in causes.items()) or "an engine was lost")
        return buckets, next(iter(sent.values())), differing

    def _open(self, slots: Sequence[WorkerSlot]) -> None:
        """Links from ranks to the engines in `slots`.

        Raises:
            TransferError: they did not meet.
        """
        self._linked = []
        ranks = len(self._learners.processes) if self._transport == "ipc" else 1
        served = {rank: [slot for slot in slots if slot.index % ranks == rank] for rank in range(ranks)}
        served = {rank: beside for rank, beside in served.items() if beside}
        meeting: PushCalls = {}
        points = {}
        for rank, (host, port) in self._learners.listen(list(served)).items():
            members = 1 + self._shards * len(served[rank])
            points[rank] = MeetingPoint(self._transport, host, port, members, self._config.timeout_s)
            for place, slot in enumerate(served[rank]):
                call = slot.worker.actor.open_link.remote(points[rank], 1 + place * self._shards)
                meeting[call] = slot, slot.worker
        why = [text for text in self._learners.open_links(points).values() if text]
        why += self._workers.collect_push(meeting, None, timeout_s=self._config.timeout_s)[1].values()
        if why:
            raise TransferError("; ".join(why))
        self._linked = [slot.worker for slot in slots]

    def _buckets(self, everything: bool) -> Buckets:
        if everything not in self._described:
            self._described[everything] = self._learners.described_weights(
                self._config.bucket_bytes, trainable_only=not everything
            )
        return self._described[everything]

    def _give_up_if_failed(self, calls: PushCalls) -> None:
        """Called while ranks send: a link on which an engine failed is torn down, for they may wait for it."""
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            try:
                ray.get(call, timeout=0)
            except RayError as error:
                log.warning("%s receives no weights: %s", calls[call][0].name, cause_of(error))
                self._learners.abort_links()
                return
