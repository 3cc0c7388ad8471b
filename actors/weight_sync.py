"""Weights from learners to engines: sent by one of two ways, versioned, and compared by checksums."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from actors.device_transfer import DeviceTransfer, TransferError
from actors.learner_group import LearnerGroup
from actors.rollout_group import RolloutWorkerGroup
from actors.weight_buckets import WeightBucket, WeightsLostError, checksums
from rl.config.learner import WeightSyncConfig

log = logging.getLogger(__name__)


class WeightSyncError(RuntimeError):
    """An engine does not hold the weights it was sent."""


class WeightSync:
    """Pushes the learners' weights to every engine; what arrived is compared, every parameter of it.

    The first push carries every parameter, later ones only those that train, unless a new engine is among the
    receivers: a frozen vision tower is sent once. Every push resets all of an engine's caches, whatever it carries
    (docs/decisions/0003-engine.md). Checksums are of what learners and engines hold, computed where it lies.
    """

    def __init__(
        self,
        learners: LearnerGroup,
        workers: RolloutWorkerGroup,
        config: WeightSyncConfig,
        version: int,
        *,
        keeps_pushed: bool = False,
        direct: DeviceTransfer | None = None,
    ) -> None:
        """
        Args:
            version: of the learners' weights.
            keeps_pushed: what was pushed last stays in the object store, for engines that start while the learners work
                on the next version; they wait for its push otherwise.
            direct: from device to device; None: everything goes through the object store, as does what engines that
                start late are given and what a failed transfer did not bring.
        """
        self._learners, self._workers, self._config = learners, workers, config
        self._keeps_pushed, self._direct = keeps_pushed, direct
        self._pushed: list[WeightBucket] = []  # of the last push of everything, then of the last one after it
        self._num_everything = 0  # of these, the former
        self._version = version - 1  # the first push re-establishes `version` in fresh engines
        self._pushed_all, self._is_pushing = False, False
        self.metrics: dict[str, float] = {}
        workers.set_weight_sync(self.sync_new_workers)
        self.digests: dict[str, str] = {}  # checksum of every parameter as last pushed; frozen ones are sent once

    def push(self) -> int:
        """One push; returns the version every engine now runs.

        Raises:
            WeightSyncError: a parameter in an engine differs from the learners'.
            WeightsLostError: they were lost in transit twice. No engine samples before another push.
        """
        version, everything = self._version + 1, not self._pushed_all
        self._is_pushing = True
        try:
            self.metrics = self._send_directly(version, everything) or self._send(version, everything=everything)
        finally:
            self._is_pushing = False
        self._version, self._pushed_all = self._version + 1, True
        return self._version

    def sync_new_workers(self) -> None:
        """Give engines that have started since the last push what was pushed then; a learner may have moved on.

        While a push is under way they wait for its end: it may be they who are being sent to.
        """
        if self._is_pushing:
            return
        if not self._learners.has_moved:
            self._send(self._version, everything=True, only=self._workers.new_workers)
        elif self._pushed:
            only = self._workers.new_workers
            self._load(self._pushed, self._version, only)

    def _send(self, version: int, *, everything: bool, only: Sequence[str] | None = None) -> dict[str, float]:
        start = time.perf_counter()
        try:
            buckets, exported = self._export_and_load(version, everything, only)
        except WeightsLostError as error:
            log.warning("weights %d are sent again: %s", version, error)
            buckets, exported = self._export_and_load(version, True, only)
        seconds = time.perf_counter() - start
        size = sum(tensor.nbytes for bucket in buckets for tensor in bucket.tensors)
        parts = {"sync/export_seconds": exported - start, "sync/load_seconds": start + seconds - exported}
        return self._sent(version, checksums(buckets), size, seconds) | parts

    def _send_directly(self, version: int, everything: bool) -> dict[str, float]:
        """Weights from device to device; empty where they have to go through the object store."""
        if self._direct is None:
            return {}
        everything = everything or bool(self._workers.new_workers)
        slots = [slot for slot in self._workers.slots if slot.worker.location] if everything else self._workers.ready
        if not slots:
            return {}
        start = time.perf_counter()
        try:
            buckets, sent, differing = self._direct.send(slots, version, everything=everything)
        except TransferError as error:
            log.warning("weights %d go through the object store: %s", version, error)
            return {}
        self._confirm(differing, version)
        self._learners.has_moved = False
        # what was kept is of an older version: engines that start from now on wait for a push
        self._pushed, self._num_everything = [], 0
        seconds = time.perf_counter() - start
        size = sum(tensor.nbytes for bucket in buckets for tensor in bucket)
        return self._sent(version, sent, size, seconds) | {"sync/direct": 1.0}

    def _sent(self, version: int, sent: Mapping[str, str], size: int, seconds: float) -> dict[str, float]:
        """The numbers of a push."""
        self.digests |= sent
        return {
            "sync/bytes": float(size),
            "sync/seconds": seconds,
            "sync/gb_per_s": size / seconds / 1e9,
            "sync/verified_parameters": float(len(sent)),
            "sync/version": float(version),
            "sync/direct": 0.0,
        }

    def _export_and_load(
        self, version: int, everything: bool, only: Sequence[str] | None
    ) -> tuple[Sequence[WeightBucket], float]:
        """The buckets sent, and time.perf_counter() when the learners had exported them."""
        everything = everything or bool(self._workers.new_workers)
        buckets = self._learners.export(self._config.bucket_bytes, trainable_only=not everything)
        exported = time.perf_counter()
        if not everything:  # engines that started during the export get everything later
            only = [slot.name for slot in self._workers.ready]
        self._load(buckets, version, only)
        if self._keeps_pushed and (everything or self._num_everything):  # a part alone is no policy
            self._pushed[0 if everything else self._num_everything :] = buckets
            self._num_everything = len(buckets) if everything else self._num_everything
        return buckets, exported

    def _load(self, buckets: Sequence[WeightBucket], version: int, only: Sequence[str] | None) -> None:
        """Into the engines; what they then hold is compared, where it lies."""
        self._confirm(
            self._workers.load_weights(buckets, version, timeout_s=self._config.timeout_s, only=only), version
        )

    def _confirm(self, differing: Mapping[str, Sequence[str]], version: int) -> None:
        """Nothing in an engine differs from what the learners hold."""
        for worker, wrong in differing.items():
            if wrong:
                raise WeightSyncError(
                    f"engine {worker} holds other values than the learners for {', '.join(wrong[:3])}"
                    f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} after push {version}"
                )
        self._workers.mark_recovered(list(differing))
