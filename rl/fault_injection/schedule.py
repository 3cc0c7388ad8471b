"""Which faults are injected into a run, where, and when: a pure function of a seed.

Faults come in rounds: each round holds every fault type once, in an order of its own, so that a short experiment
already sees many of them. Between two faults pass `every_s` seconds on average.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rl.config.errors import ConfigError

KILL, STOP, TERMINATE, DAMAGE, SLOW, FILL, RESTART = "kill", "stop", "terminate", "damage", "slow", "fill", "restart"
OF_NODES = ("node", "store", "disk", "gcs")  # targets
PASSES_S = 20.0  # how long what passes by itself lasts


@dataclass(frozen=True, slots=True)
class FaultType:
    """What is done, and to which process or node."""

    # KILL: SIGKILL | STOP: SIGSTOP for good | TERMINATE: SIGTERM | DAMAGE: a byte of the newest checkpoint
    # for PASSES_S: SLOW the network of a node | FILL an object store, a disk | RESTART: killed, and there again
    action: str
    # "rollout" | "reward" | "learner" | "decoder": one process | "run": all (TERMINATE: the driver)
    # with --nodes: "node": one of them | "store": its object store | "disk": of the run | "gcs": Ray's head service
    target: str
    during: str = ""  # only while a learner rank runs this method: "export" is the first half of a weight push

    @property
    def ends_the_run(self) -> bool:
        """The run has to be launched again."""
        return self.target == "run" or (self.target == "gcs" and self.action == KILL)

    @property
    def needs_nodes(self) -> bool:
        """It happens to a cluster."""
        return self.target in OF_NODES

    @property
    def passes(self) -> bool:
        """It ends by itself, and the run goes on."""
        return self.action in (SLOW, FILL, RESTART)


FAULT_TYPES: Mapping[str, FaultType] = MappingProxyType(
    {
        "rollout_killed": FaultType(KILL, "rollout"),
        "rollout_stopped": FaultType(STOP, "rollout"),
        "rollout_killed_in_push": FaultType(KILL, "rollout", during="export"),
        "reward_killed": FaultType(KILL, "reward"),
        "reward_stopped": FaultType(STOP, "reward"),
        "learner_killed": FaultType(KILL, "learner"),
        "learner_stopped": FaultType(STOP, "learner"),
        "learner_killed_in_push": FaultType(KILL, "learner", during="export"),
        "decoder_killed": FaultType(KILL, "decoder"),
        "run_killed": FaultType(KILL, "run"),
        "run_killed_checkpoint_damaged": FaultType(DAMAGE, "run"),
        "run_terminated": FaultType(TERMINATE, "run"),
        "node_killed": FaultType(KILL, "node"),
        "node_network_slow": FaultType(SLOW, "node"),
        "object_store_full": FaultType(FILL, "store"),
        "disk_full": FaultType(FILL, "disk"),
        "gcs_restarted": FaultType(RESTART, "gcs"),
        "gcs_killed": FaultType(KILL, "gcs"),
    }
)
WITHOUT_NODES = tuple(name for name, fault_type in FAULT_TYPES.items() if not fault_type.needs_nodes)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault that is to be injected."""

    after_s: float  # seconds in which the run makes steps, since the first
    fault_type: str  # a key of FAULT_TYPES
    pick: float  # in [0, 1): which of the possible targets, in the order of their process ids


def schedule(seed: int, every_s: float, fault_types: Sequence[str] = tuple(FAULT_TYPES)) -> Iterator[PlannedFault]:
    """Faults without end, in the order in which they are due.

    Args:
        every_s: mean seconds between two; each gap is between half and one and a half of it.
        fault_types: those that may be injected.
    Raises:
        ConfigError: no such fault type.
    """
    unknown = [name for name in fault_types if name not in FAULT_TYPES]
    if unknown or not fault_types:
        raise ConfigError(f"command line: --only: no fault {', '.join(unknown)!r}; there are {', '.join(FAULT_TYPES)}")
    chance, now_s = random.Random(seed), 0.0
    while True:
        for name in chance.sample(sorted(set(fault_types)), k=len(set(fault_types))):
            now_s += every_s * chance.uniform(0.5, 1.5)
            yield PlannedFault(now_s, name, chance.random())
