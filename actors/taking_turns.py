"""Engines and learners on the same GPUs take turns: who has nothing to do gives its memory up.

| turn | engines | learners |
|---|---|---|
| rollouts | awake | masters, moments and gradients in main memory; the weights stay |
| learning | sleep: weights in main memory, no KV cache | everything on the GPU |
| push | wake their weights | export |
| and back | wake their KV cache | offload |

An engine that starts takes as much memory as one that is awake: it starts while learners have no turn (a lock per GPU,
actors.cluster.gpu_turn), and their turn begins when none is starting.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from actors.learner import LearnerGroup
from actors.rollout_group import RolloutWorkerGroup
from actors.weight_sync import WeightSync
from rl.trajectory import LearnerUpdate, ScoredGroup


class EngineMemory(StrEnum):
    """What a sleeping engine has given up; the words are vLLM's."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"


class TakingTurns:
    """Stands in the trainer's loop for the learners and for their weights, and hands the GPUs over between them."""

    def __init__(self, learners: LearnerGroup, weights: WeightSync, workers: RolloutWorkerGroup) -> None:
        self._learners, self._weights, self._workers = learners, weights, workers

    def update(self, scored: Sequence[ScoredGroup], *, step: int, version: int) -> LearnerUpdate:
        """As the learners' own, in their turn.

        Raises:
            LearnerError: as theirs.
            RolloutError: an engine does not start, so that its GPU never comes free.
        """
        self._workers.sleep()
        self._learners.reload()
        learned = self._learners.update(scored, step=step, version=version)
        if not learned.steps_taken:  # nothing will be pushed
            self._workers.wake(EngineMemory.WEIGHTS)
            self._to_engines()
        return learned

    def push(self) -> int:
        """As the weights' own; it ends the learners' turn."""
        self._workers.wake(EngineMemory.WEIGHTS)
        version = self._weights.push()
        self._to_engines()
        return version

    def _to_engines(self) -> None:
        self._learners.offload()
        self._workers.wake(EngineMemory.KV_CACHE)
