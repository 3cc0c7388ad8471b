"""Weights from learners to engines: exported in buckets, loaded, versioned, and compared by checksums."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from actors.learner import LearnerGroup
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
    ) -> None:
        """
        Args:
            version: of the learners' weights.
            keeps_pushed: what was pushed last stays in the object store, for engines that start while the learners work
                on the next version; they wait for its push otherwise.
        """
        self._learners, self._workers, self._config = learners, workers, config
        self._keeps_pushed = keeps_pushed
        self._pushed: list[WeightBucket] = []  # of the last push of everything, then of the last one after it
        self._num_everything = 0  # of these, the former
        self._version = version - 1  # the first push re-establishes `version` in fresh engines
        self._pushed_all = False
        self.metrics: dict[str, float] = {}
        workers.set_weight_sync(self.sync_new_workers)
        self.digests: dict[str, str] = {}  # checksum of every parameter as last pushed; frozen ones are sent once

    def push(self) -> int:
        """One push; returns the version every engine now runs.

        Raises:
            WeightSyncError: a parameter in an engine differs from the learners'.
            WeightsLostError: they were lost in transit twice. No engine samples before another push.
        """
        self.metrics = self._send(self._version + 1, everything=not self._pushed_all)
        self._version, self._pushed_all = self._version + 1, True
        return self._version

    def sync_new_workers(self) -> None:
        """Give engines that have started since the last push what was pushed then; a learner may have moved on."""
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
        sent = checksums(buckets)
        self.digests |= sent
        size = sum(tensor.nbytes for bucket in buckets for tensor in bucket.tensors)
        return {
            "sync/bytes": float(size),
            "sync/seconds": seconds,
            "sync/export_seconds": exported - start,
            "sync/load_seconds": start + seconds - exported,
            "sync/gb_per_s": size / seconds / 1e9,
            "sync/verified_parameters": float(len(sent)),
            "sync/version": float(version),
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
        if self._keeps_pushed:
            self._pushed[0 if everything else self._num_everything :] = buckets
            self._num_everything = len(buckets) if everything else self._num_everything
        return buckets, exported

    def _load(self, buckets: Sequence[WeightBucket], version: int, only: Sequence[str] | None) -> None:
        """Into the engines; what they then hold is compared, where it lies."""
        differing = self._workers.load_weights(buckets, version, timeout_s=self._config.timeout_s, only=only)
        for worker, wrong in differing.items():
            if wrong:
                raise WeightSyncError(
                    f"engine {worker} holds other values than the learners for {', '.join(wrong[:3])}"
                    f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} after push {version}"
                )
        self._workers.mark_recovered(list(differing))
