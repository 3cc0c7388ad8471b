"""Placement: one placement group with a bundle per worker, reserved before any worker starts."""

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
from rl.config.trainer import PlacementConfig

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
    """One reserved bundle per worker. `options("rollout", 0)` goes into `.options(**...)` of the worker's actor."""

    def __init__(self, placement: PlacementConfig, demand: Demand, run: str) -> None:
        """Reserve the bundles of a run; waits for room up to placement.timeout_s.

        Args:
            run: its name, with which every worker's begins: NAME/rollout/0.
        Raises:
            ConfigError: the cluster can never hold the run.
            PlacementError: it had no room in time.
        """
        self._run, self._bundles = run, bundles_of(placement, demand)
        self._first = {"rollout": 0, "reward": demand.rollout, "learner": demand.rollout + demand.reward}
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
        """Actor options of worker `index` of a kind: its name in Ray's dashboard, its resources, its bundle."""
        bundle = self._first[kind] + index
        return {
            "name": f"{self._run}/{kind}/{index}",
            "num_cpus": self._bundles[bundle].get("CPU", 0.0),
            "num_gpus": self._bundles[bundle].get("GPU", 0.0),
            "max_restarts": 0,  # a dead worker is rebuilt by its pool, with weights and state of our choosing
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        }

    def release(self) -> None:
        """Release the bundles; Ray kills the actors still in them."""
        remove_placement_group(self._group)


def incarnation_name(name: str, replaced: int) -> str:
    """A unique actor name after `replaced` workers of this name: Ray frees a killed actor's name late."""
    return f"{name}#{replaced}" if replaced else name


def bundles_of(placement: PlacementConfig, demand: Demand) -> list[dict[str, float]]:
    """The resources of every worker: rollout workers first, then reward workers, then learner ranks."""

    def bundle(cpus: float, gpus: float = 0.0) -> dict[str, float]:
        return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})

    return (
        [bundle(placement.rollout_cpus, placement.rollout_gpus)] * demand.rollout
        + [bundle(placement.reward_cpus)] * demand.reward
        + [bundle(placement.learner_cpus, placement.learner_gpus)] * demand.learner
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
