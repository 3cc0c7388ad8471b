"""From learners to engines: buckets through the object store, a version, and a read-back that proves the arrival."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from actors.learner import LearnerGroup
from actors.rollout import RolloutPool
from actors.weight_buckets import WeightBucket
from rl.config import WeightSyncConfig

log = logging.getLogger(__name__)


class WeightSyncError(RuntimeError):
    """An engine does not hold the weights it was sent."""


class WeightSync:
    """Pushes the learners' weights to every engine and checks that they arrived.

    The first push carries every parameter, later ones only those that train: a frozen vision tower is sent once. Every
    push resets all of an engine's caches, whatever it carried (docs/decisions/0003-engine.md).
    """

    def __init__(self, learners: LearnerGroup, rollouts: RolloutPool, config: WeightSyncConfig, version: int) -> None:
        self._learners, self._rollouts, self._config = learners, rollouts, config
        self._version = version - 1  # the first push re-establishes `version` in fresh engines
        self._pushed_all = False
        self.metrics: dict[str, float] = {}
        self.digests: dict[str, str] = {}  # sha256 of every parameter as last pushed; frozen ones are sent once

    def push(self) -> int:
        """One push; returns the version every engine now runs.

        Raises:
            WeightSyncError: a parameter read back from an engine differs from the learners'.
        """
        start = time.perf_counter()
        buckets = self._learners.export(self._config.bucket_bytes, trainable_only=self._pushed_all)
        exported = time.perf_counter()
        version = self._version + 1
        self._rollouts.load_weights(buckets, version, timeout_s=self._config.timeout_s)
        loaded = time.perf_counter()
        verified = self._verify(buckets, version)
        seconds = time.perf_counter() - start
        self._version, self._pushed_all = version, True
        self.digests |= {tensor.name: tensor.sha256 for bucket in buckets for tensor in bucket.tensors}
        size = sum(tensor.nbytes for bucket in buckets for tensor in bucket.tensors)
        self.metrics = {
            "sync/bytes": float(size),
            "sync/seconds": seconds,
            "sync/export_seconds": exported - start,
            "sync/load_seconds": loaded - exported,
            "sync/verify_seconds": start + seconds - loaded,
            "sync/gb_per_s": size / seconds / 1e9,
            "sync/verified_parameters": float(verified),
            "sync/version": float(version),
        }
        return version

    def _verify(self, buckets: Sequence[WeightBucket], version: int) -> int:
        """Read a rotating sample of parameters back from every engine and compare checksums."""
        sent = {tensor.name: tensor.sha256 for bucket in buckets for tensor in bucket.tensors}
        names = _rotating(sorted(sent), self._config.verify_tensors, version)
        for worker, held in enumerate(self._rollouts.checksums(names, timeout_s=self._config.timeout_s)):
            wrong = [name for name in names if held.get(name) != sent[name]]
            if wrong:
                raise WeightSyncError(
                    f"engine rollout/{worker} holds other values than the learners for {wrong} after push {version}"
                )
        return len(names)


def _rotating(names: Sequence[str], count: int, turn: int) -> list[str]:
    """`count` names, starting further along at every turn, so that all are visited."""
    if not names:
        return []
    return [names[(turn * count + i) % len(names)] for i in range(min(count, len(names)))]
