"""Every configured reward, loaded and tried on golden trajectories. Part of the composition root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from actors.reward import weighted_rewards
from rewards.failures import cause_line
from rewards.golden import golden_group
from rewards.limits import deadline
from rewards.registry import RewardLoadError
from rewards.scoring import WeightedReward, score_group
from rl.config.rewards import RewardTermConfig
from rl.config.run import RunConfig
from rl.run.preflight.findings import Finding, Level
from rl.trajectory import AnswerKind, RewardFailure


def check_rewards(config: RunConfig) -> Iterator[Finding]:
    """Each reward is loaded and run on a golden group of every kind of answer, each call within its deadline."""
    for name, term in config.rewards.items():
        guard = _given_up_once_late(deadline(config.scoring.timeout_s), config.scoring.timeout_s)
        try:
            with guard():  # a module that hangs while it is imported, too
                reward = weighted_rewards({name: term})
        except (RewardLoadError, TimeoutError) as error:
            yield Finding(f"rewards.{name}", Level.FAILED, str(error))
            continue
        yield _reward(name, term, reward, config.scoring.calls, guard)


def _reward(
    name: str,
    term: RewardTermConfig,
    reward: list[WeightedReward],
    calls: str,
    guard: Callable[[], AbstractContextManager[Any]],
) -> Finding:
    """It works if it gives numbers for some kind of answer and fails for none; None says that a kind is not its own."""
    kinds_of: dict[str, list[str]] = {}  # values on a golden group -> kinds of answers that have them
    for kind in AnswerKind:
        scored = score_group(golden_group(kind), reward, calls=calls, guard=guard)
        failures = [v for v in scored.rewards_G if isinstance(v, RewardFailure) and v.term == name]
        if failures:
            return Finding(f"rewards.{name}", Level.FAILED, cause_line(failures[0]))
        breakdowns = [own.breakdown for own in scored.rewards_G if not isinstance(own, RewardFailure)]
        values = [f"{breakdown[name]:.3g}" for breakdown in breakdowns if name in breakdown]
        if values:
            kinds_of.setdefault(", ".join(values), []).append(kind.value)
    if not kinds_of:
        return Finding(f"rewards.{name}", Level.FAILED, f"{term.fn} returns None on every golden trajectory")
    told = "; ".join(f"{values} ({', '.join(kinds)})" for values, kinds in kinds_of.items())
    return Finding(f"rewards.{name}", Level.OK, f"{term.fn} on golden trajectories: {told}")


def _given_up_once_late(
    guard: Callable[[], AbstractContextManager[Any]], timeout_s: float
) -> Callable[[], AbstractContextManager[Any]]:
    """The guard, but after one deadline was missed further calls are not waited for."""
    hung = False

    @contextmanager
    def once() -> Iterator[None]:
        nonlocal hung
        if hung:
            raise TimeoutError(f"not called again after a call without a result within {timeout_s:g} s")
        try:
            with guard():
                yield
        except TimeoutError:
            hung = True
            raise

    return once
