"""Which faults strike a run, whom, and when: a pure function of a seed.

Faults come in rounds: each round holds every kind once, in an order of its own, so that a short time already sees many
kinds. Between two faults pass `every_s` seconds on average.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rl.config.errors import ConfigError

KILL, STOP, TERMINATE, DAMAGE = "kill", "stop", "terminate", "damage"


@dataclass(frozen=True, slots=True)
class Mischief:
    """A kind of fault."""

    what: str  # KILL: SIGKILL | STOP: SIGSTOP for good | TERMINATE: SIGTERM | DAMAGE: a byte of the newest checkpoint
    whom: str  # "rollout" | "reward" | "learner" | "decoder": one process | "run": all (TERMINATE: the driver)
    during: str = ""  # only while a learner rank does this: "export" is the first half of a weight push

    @property
    def ends_the_run(self) -> bool:
        """The same command must be given again."""
        return self.whom == "run"


KINDS: Mapping[str, Mischief] = MappingProxyType(
    {
        "rollout_killed": Mischief(KILL, "rollout"),
        "rollout_stopped": Mischief(STOP, "rollout"),
        "rollout_killed_in_push": Mischief(KILL, "rollout", during="export"),
        "reward_killed": Mischief(KILL, "reward"),
        "reward_stopped": Mischief(STOP, "reward"),
        "learner_killed": Mischief(KILL, "learner"),
        "learner_stopped": Mischief(STOP, "learner"),
        "learner_killed_in_push": Mischief(KILL, "learner", during="export"),
        "decoder_killed": Mischief(KILL, "decoder"),
        "run_killed": Mischief(KILL, "run"),
        "run_killed_checkpoint_damaged": Mischief(DAMAGE, "run"),
        "run_terminated": Mischief(TERMINATE, "run"),
    }
)


@dataclass(frozen=True, slots=True)
class Due:
    """A fault that is to strike."""

    after_s: float  # seconds in which the run makes steps, since the first
    kind: str  # of KINDS
    pick: float  # in [0, 1): whom of those there are, in the order of their process ids


def schedule(seed: int, every_s: float, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Due]:
    """Faults without end, in the order in which they are due.

    Args:
        every_s: mean seconds between two; each gap is between half and one and a half of it.
        kinds: those that may come, as in KINDS.
    Raises:
        ConfigError: no such kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigError(f"command line: --only: no fault {', '.join(unknown)!r}; there are {', '.join(KINDS)}")
    chance, now_s = random.Random(seed), 0.0
    while True:
        for kind in chance.sample(sorted(set(kinds)), k=len(set(kinds))):
            now_s += every_s * chance.uniform(0.5, 1.5)
            yield Due(now_s, kind, chance.random())
