"""Engines and learners on the same GPUs take turns: who has nothing to do gives its memory up.

| turn | engines | learners |
|---|---|---|
| rollouts | awake | masters, moments and gradients in main memory, or they stay; the weights stay |
| learning | sleep: no KV cache, weights in main memory or nowhere | everything on the GPU |
| push | wake their weights | export |
| and back | wake their KV cache | offload |

What stays, stays where the memory plan has room for it (rl.memory_plan.record.GivenUp). Weights that are nowhere come
with the push, which then brings those that do not train, too.

An engine that starts takes as much memory as one that is awake: it starts while learners have no turn (a lock per GPU,
actors.cluster.gpu_turn), and their turn begins when none is starting.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.learner_group import LearnerGroup
from actors.sleeping_engines import EngineMemory, SleepingEngines
from actors.weight_sync import WeightSync
from rl.trajectory import LearnerUpdate, ScoredGroup


class TakingTurns:
    """Stands in the trainer's loop for the learners and for their weights, and hands the GPUs over between them."""

    def __init__(
        self, learners: LearnerGroup, weights: WeightSync, engines: SleepingEngines, *, offloads: bool
    ) -> None:
        """
        Args:
            offloads: learners move masters, moments and gradients to main memory while they have no turn.
        """
        self._learners, self._weights, self._engines, self._offloads = learners, weights, engines, offloads

    def receive(self, scored: Sequence[ScoredGroup]) -> Sequence[ScoredGroup]:
        """As the learners' own, while engines are awake: it is they who make lost groups again."""
        return self._learners.receive(scored)

    def update(self, *, step: int, version: int) -> LearnerUpdate:
        """As the learners' own, in their turn.

        Raises:
            LearnerError: as theirs.
            RolloutError: an engine does not start, so that its GPU never comes free.
        """
        self._engines.sleep()
        self._learners.reload()
        learned = self._learners.update(step=step, version=version)
        if not learned.steps_taken:  # nothing will be pushed
            self._engines.wake(EngineMemory.WEIGHTS)
            self._engines.supply_weights()  # those that have kept no weights
            self._to_engines()
        return learned

    def push(self) -> int:
        """As the weights' own; it ends the learners' turn."""
        self._engines.wake(EngineMemory.WEIGHTS)
        version = self._weights.push()
        self._to_engines()
        return version

    def _to_engines(self) -> None:
        self._learners.offload(states=self._offloads)
        self._engines.wake(EngineMemory.KV_CACHE)
