"""Placement: one placement group, reserved before any worker starts.

A bundle per worker; where engines and learners have fractions of GPUs, a bundle per GPU: a learner rank and the engines
beside it. Ray by itself fills one GPU after the other, and NCCL refuses two ranks on one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.errors import ConfigError
from rl.config.trainer import PlacementConfig, engines_beside

log = logging.getLogger(__name__)

RESOURCES = ("CPU", "GPU")
QUIET_S = 2.0  # a placement that is met within it needs no message
REPORT_S = 60.0  # between two messages of a run that waits for room

Bundle = Mapping[str, float]  # resource -> amount


class PlacementError(RuntimeError):
    """The cluster had no room for the run in time; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Demand:
    """How many workers of each kind a run needs."""

    rollout: int
    reward: int
    learner: int


class Slots:
    """A place in a bundle per worker. `options("rollout", 0)` goes into `.options(**...)` of the worker's actor."""

    def __init__(self, placement: PlacementConfig, demand: Demand, run: str) -> None:
        """Reserve the bundles of a run; waits for room up to placement.timeout_s.

        Args:
            run: its name, with which every worker's begins: NAME/rollout/0.
        Raises:
            ConfigError: the cluster can never hold the run.
            PlacementError: it had no room in time.
        """
        self._run, self._bundles = run, bundles_of(placement, demand)
        self._demand, self._is_shared = demand, _share_gpus(placement, demand)
        self._resources = {
            "rollout": (placement.rollout_cpus, placement.rollout_gpus),
            "reward": (placement.reward_cpus, 0.0),
            "learner": (placement.learner_cpus, placement.learner_gpus),
            "cold_start": (placement.learner_cpus, placement.learner_gpus),
        }
        if not os.environ.get("RAY_ADDRESS"):  # no nodes join a Ray that was started here
            _require_capacity(self._bundles)
        elif not placement.autoscaling:
            _require_some_gpu(self._bundles)
        self._group: PlacementGroup = placement_group(
            self._bundles, strategy="PACK" if placement.colocate else "SPREAD"
        )
        try:
            _wait_for_room(self._group, self._bundles, placement.timeout_s)
        except BaseException:  # Ctrl-C included: a request that is given up must not be granted later
            self.release()
            raise

    def options(self, kind: str, index: int) -> dict[str, Any]:
        """Actor options of worker `index` of a kind: its name in Ray's dashboard, its resources, its bundle.

        Args:
            kind: rollout | reward | learner | cold_start: learner ranks, and beyond them one on each GPU of an engine.
        """
        cpus, gpus, bundle = *self._resources[kind], self._bundle(kind, index)
        if kind == "cold_start" and index >= self._demand.learner:
            engine_cpus, engine_gpus = self._resources["rollout"]
            cpus, gpus = min(cpus, engine_cpus / int(engine_gpus)), 1.0
        return {
            "name": f"{self._run}/{kind.replace('_', '-')}/{index}",
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": 0,  # a dead worker is rebuilt by its pool, with weights and state of our choosing
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        }

    def release(self) -> None:
        """Release the bundles; Ray kills the actors still in them."""
        remove_placement_group(self._group)

    def _bundle(self, kind: str, index: int) -> int:
        """Which bundle holds worker `index` of a kind; in the order of `bundles_of`."""
        rollout, reward, ranks = self._demand.rollout, self._demand.reward, self._demand.learner
        if kind == "cold_start" and index < ranks:
            kind = "learner"
        if self._is_shared:
            return {"rollout": index % ranks, "learner": index, "reward": ranks + index}[kind]
        if kind == "cold_start":
            return (index - ranks) // int(self._resources["rollout"][1])
        return index + {"rollout": 0, "reward": rollout, "learner": rollout + reward}[kind]


def incarnation_name(name: str, replaced: int) -> str:
    """A unique actor name after `replaced` workers of this name: Ray frees a killed actor's name late."""
    return f"{name}#{replaced}" if replaced else name


def bundles_of(placement: PlacementConfig, demand: Demand) -> list[dict[str, float]]:
    """What is reserved: a bundle per rollout worker, then per reward worker, then per learner rank.

    Where GPUs are shared: a bundle of one GPU per rank and the engines beside it, then one per reward worker.

    Raises:
        ConfigError: a shared GPU has no room for a rank and its engines.
    """

    def bundle(cpus: float, gpus: float = 0.0) -> dict[str, float]:
        return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})

    rewards = [bundle(placement.reward_cpus)] * demand.reward
    if _share_gpus(placement, demand):
        engines = engines_beside(demand.rollout, demand.learner)
        _require_room(placement, max(engines))
        return [bundle(placement.learner_cpus + n * placement.rollout_cpus, 1.0) for n in engines] + rewards
    # NCCL refuses two ranks on one GPU, so a rank with a fraction reserves a whole one
    rank_gpus = 1.0 if demand.learner > 1 and 0 < placement.learner_gpus < 1 else placement.learner_gpus
    return (
        [bundle(placement.rollout_cpus, placement.rollout_gpus)] * demand.rollout
        + rewards
        + [bundle(placement.learner_cpus, rank_gpus)] * demand.learner
    )


def _share_gpus(placement: PlacementConfig, demand: Demand) -> bool:
    return placement.shares_gpus and demand.learner > 0 and demand.rollout > 0


def _require_room(placement: PlacementConfig, engines: int) -> None:
    """Refuse a rank and so many engines that are more than one GPU."""
    needed = placement.learner_gpus + engines * placement.rollout_gpus
    if needed > 1 + 1e-6:
        raise ConfigError(
            f"a learner rank ({placement.learner_gpus:g} GPU) and {engines} engines beside it "
            f"({placement.rollout_gpus:g} each) need {needed:g} of one GPU: lower placement.rollout_gpus or "
            "rollout.num_workers, raise learner.num_ranks, or give both whole GPUs"
        )


def _wait_for_room(group: PlacementGroup, bundles: Sequence[Bundle], timeout_s: float) -> None:
    """Wait until the bundles are reserved, and report every minute what is needed and free.

    Raises:
        ConfigError: not in time, and the cluster is smaller than the run.
        PlacementError: not in time.
    """
    began, reserved = time.monotonic(), group.ready()
    waited_s, next_report_s = 0.0, min(QUIET_S, timeout_s)
    while not ray.wait([reserved], timeout=max(next_report_s - waited_s, 0.0))[0]:
        waited_s = time.monotonic() - began
        if waited_s >= timeout_s:
            _require_capacity(bundles)
            raise PlacementError(
                f"no room for the run within {timeout_s:.0f} s (placement.timeout_s): {_room(bundles)}"
            )
        log.warning(
            "waiting for room on the cluster: %s; waited %.0f of %.0f s (placement.timeout_s)",
            *(_room(bundles), waited_s, timeout_s),
        )
        next_report_s = min(next_report_s + REPORT_S, timeout_s)


def _room(bundles: Sequence[Bundle]) -> str:
    """CPUs and GPUs of a run and of the cluster."""
    free, total = ray.available_resources(), ray.cluster_resources()
    asked = [resource for resource in RESOURCES if _needed(bundles, resource) > 0]
    return ", ".join(
        f"{_needed(bundles, resource):g} {resource}s needed, {free.get(resource, 0.0):g} of "
        f"{total.get(resource, 0.0):g} free"
        for resource in asked
    )


def _require_capacity(bundles: Sequence[Bundle]) -> None:
    """Refuse what the cluster, with the nodes it has, can never provide (Ray itself would wait silently)."""
    total = ray.cluster_resources()
    for resource in RESOURCES:
        needed = _needed(bundles, resource)
        if needed > total.get(resource, 0.0) + 1e-6:
            raise ConfigError(
                f"the run needs {needed:g} {resource} but the cluster has {total.get(resource, 0.0):g}: add nodes, or "
                f"lower rollout.num_workers, learner.num_ranks or placement.*_{resource.lower()}s"
            )


def _require_some_gpu(bundles: Sequence[Bundle]) -> None:
    """Refuse GPUs on a cluster without any: nodes that are only started on demand have to be announced."""
    needed = _needed(bundles, "GPU")
    if needed and not ray.cluster_resources().get("GPU"):
        raise ConfigError(
            f"the run needs {needed:g} GPU but no node of the cluster has any: start GPU nodes, set "
            "placement.rollout_gpus=0 and placement.learner_gpus=0, or placement.autoscaling=true where GPU nodes are "
            "started on demand"
        )


def _needed(bundles: Sequence[Bundle], resource: str) -> float:
    return sum(bundle.get(resource, 0.0) for bundle in bundles)
