"""Steps sampled: groups rolled out, each scored as soon as its engine has finished it, several steps at a time.

| who | hands | to | when |
|---|---|---|---|
| the sampler | the tasks that a step draws | the rollout pool | at once |
| the rollout pool | a finished group | a reward worker | at once |
| the sampler | all scored groups of a draw | the step's drawing, which may draw more | when the last one is scored |

Whoever waits for something else, such as the learners, calls `poll` meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from actors.reward import RewardPool, ScoreRequest
from actors.rollout_pool import RolloutPool
from actors.rollout_requests import RolloutBatch
from actors.worker.waiting import POLL_S
from rl.trajectory import Drawing, SampledStep, ScoredGroup, VideoTask


@dataclass(slots=True, eq=False)
class StepUnderWay:
    """A step that is being sampled."""

    step: int
    drawing: Drawing
    batch: RolloutBatch  # of the present draw
    scores: dict[int, ScoreRequest] = field(default_factory=dict)  # by index of the task
    drawn_s: float = field(default_factory=time.monotonic)  # when the present draw began
    rolled_out_s: float | None = None  # when its last group had finished
    rollout_s: float = 0.0  # of earlier draws
    reward_s: float = 0.0

    @property
    def is_scored(self) -> bool:
        """Every group of the present draw has finished and is scored."""
        return not self.batch.unfinished and all(one.result is not None for one in self.scores.values())


class StepSampler:
    """Samples steps in the background: the trainer's `Rollouts`."""

    def __init__(
        self,
        rollouts: RolloutPool,
        rewards: RewardPool,
        *,
        accept: Callable[[int, Sequence[ScoredGroup]], None],
        max_lag: int = 0,
        settles: bool = False,
    ) -> None:
        """
        Args:
            accept: called with the step and the scored groups of each draw; what it raises ends the run.
            max_lag: pushes by which the weights that sampled a group may be behind.
            settles: nothing may be under way while weights change, so that all of a step is sampled with one version.
        """
        self._rollouts, self._rewards, self._accept = rollouts, rewards, accept
        self._max_lag, self._settles = max_lag, settles
        self._under_way: dict[int, StepUnderWay] = {}
        self._sampled: dict[int, SampledStep] = {}
        self._last_poll_s = 0.0
        self._woken = threading.Event()
        rollouts.wake(self._woken)
        rewards.wake(self._woken)

    def start(self, step: int, drawing: Drawing) -> None:
        """Begin to sample a step, unless `reset` brought it along."""
        if step not in self._sampled:
            self._under_way[step] = StepUnderWay(step, drawing, self._draw(step, *next(drawing)))

    def collect(self, step: int) -> SampledStep:
        """The groups of a step that was started.

        Raises:
            RolloutError: a task cannot be rolled out, or not all were within the deadline.
            StopRequested: as the rollout pool's `check` does.
        """
        self._rollouts.check()
        while step not in self._sampled:
            self._advance(POLL_S)
            if step not in self._sampled:  # the learners are idle
                self._rollouts.require_weights()
            self._rewards.restore_lost()
            self._rollouts.check()
        return self._sampled.pop(step)

    def settle(self) -> None:
        """Where weights may change only between steps: return when all that was started has been sampled.

        Or when no engine is left that could: the next push brings them back. A request to stop is not looked for, since
        the learners are a step ahead of what has been reported.
        """
        while self._settles and self._under_way and not self._rollouts.needs_push:
            self._advance(POLL_S)
            self._rewards.restore_lost()

    def poll(self) -> None:
        """Move on what is under way, and check on the workers; waits for nothing."""
        if self._under_way:
            self._advance(0.0)
        elif time.monotonic() - self._last_poll_s >= POLL_S:
            self._last_poll_s = time.monotonic()
            self._rollouts.workers.poll()

    @property
    def is_ahead(self) -> bool:
        """Whether steps have been started that nobody has collected."""
        return bool(self._under_way or self._sampled)

    @property
    def sampled(self) -> dict[int, SampledStep]:
        """Steps that have been sampled and not collected."""
        return dict(self._sampled)

    def reset(self, sampled: Mapping[int, SampledStep] = MappingProxyType({})) -> None:
        """Give up everything that is under way or waits; steps that were sampled before may be brought along."""
        for one in self._under_way.values():
            self._rollouts.cancel(one.batch)
        if self._under_way:
            self._rewards.forget()
        self._under_way, self._sampled = {}, dict(sampled)

    def _draw(self, step: int, tasks: Sequence[VideoTask], attempt: int) -> RolloutBatch:
        self._woken.set()  # they are handed out by the next `advance`, which must not wait for a group before
        return self._rollouts.start(tasks, step=step, attempt=attempt, max_lag=self._max_lag)

    def _advance(self, timeout_s: float) -> None:
        """Hand over whatever is ready; waits at most `timeout_s` for something to be."""
        began = time.monotonic()
        if timeout_s:
            self._woken.wait(timeout_s)
        self._woken.clear()
        self._rollouts.advance(waited_s=time.monotonic() - began)
        self._rewards.advance()
        for one in list(self._under_way.values()):
            for index, group in one.batch.take():
                one.scores[index] = self._rewards.submit(group, step=one.step)
            if one.rolled_out_s is None and not one.batch.unfinished:
                one.rolled_out_s = time.monotonic()
            if one.is_scored:
                self._next_draw(one)

    def _next_draw(self, one: StepUnderWay) -> None:
        """Show the drawing what came of its tasks: it draws more, or has what it wants."""
        now, scored = time.monotonic(), [one.scores[index].result for index in range(len(one.scores))]
        self._accept(one.step, scored)
        one.rollout_s += one.rolled_out_s - one.drawn_s
        one.reward_s += now - one.rolled_out_s
        try:
            tasks, attempt = one.drawing.send(scored)
        except StopIteration as stop:
            kept, resampled = stop.value
            self._sampled[one.step] = SampledStep(tuple(kept), resampled, one.rollout_s, one.reward_s)
            del self._under_way[one.step]
            return
        one.batch, one.scores = self._draw(one.step, tasks, attempt), {}
        one.drawn_s, one.rolled_out_s = now, None
