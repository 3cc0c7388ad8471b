"""The nodes of a cluster, and one question put to each of them by a Ray task that runs there.

| waits for | at most | then |
|---|---|---|
| answers of all nodes at once | `timeout_s` | the nodes that have not answered are named; their tasks are cancelled |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.worker.waiting import as_completed, cause_of


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive, as the cluster knows it."""

    node_id: str
    address: str
    hostname: str
    resources: Mapping[str, float]  # all it has, free or not
    is_drivers: bool  # the driver runs there

    def __str__(self) -> str:
        return self.address if self.hostname in ("", self.address) else f"{self.address} ({self.hostname})"

    def has_room_for(self, resources: Mapping[str, float]) -> bool:
        """Whether a worker that asks for so much could ever be placed there."""
        return all(self.resources.get(name, 0.0) + 1e-6 >= amount for name, amount in resources.items())


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A node's task that did not end with a result."""

    cause: str


def alive_nodes() -> list[Node]:
    """Of the cluster that this process has joined, the driver's first."""
    own = ray.get_runtime_context().get_node_id()
    nodes = [
        Node(
            each["NodeID"],
            each["NodeManagerAddress"],
            each.get("NodeManagerHostname", ""),
            each.get("Resources", {}),
            each["NodeID"] == own,
        )
        for each in ray.nodes()
        if each["Alive"]
    ]
    return sorted(nodes, key=lambda node: (not node.is_drivers, node.address, node.node_id))


def ask_nodes(
    question: Callable[..., Any], about: Sequence[tuple[Node, Sequence[Any]]], timeout_s: float
) -> list[Any | NoAnswer]:
    """What `question(*arguments)` returns on each node, in order; a NoAnswer where it failed or took too long.

    Args:
        question: an importable function; it reserves no CPU, and is not tried twice.
        about: nodes, each with its arguments.
    """
    remote = ray.remote(question)
    calls = {
        remote.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False),
        ).remote(*arguments): place
        for place, (node, arguments) in enumerate(about)
    }
    answers: dict[int, Any] = {}
    for place, result in as_completed(calls, timeout_s):
        try:
            answers[place] = result()
        except TimeoutError:
            answers[place] = NoAnswer(f"no answer within {timeout_s:.0f} s")
        except RayError as error:
            answers[place] = NoAnswer(cause_of(error))
    for call, place in calls.items():
        if isinstance(answers[place], NoAnswer):
            ray.cancel(call, force=True)  # it may hang in a mount that is gone
    return [answers[place] for place in range(len(about))]
