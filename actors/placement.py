"""Placement: the connection to Ray, and one placement group with a bundle per worker."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.waiting import first_line
from rl.config.trainer import PlacementConfig

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 1 << 30  # of a Ray started here for CPUs: frames of a step and a set of weights, many times over


class PlacementError(RuntimeError):
    """The cluster cannot hold the run; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Demand:
    """How many workers of each kind a run needs."""

    rollout: int
    reward: int
    learner: int


def connect(placement: PlacementConfig, demand: Demand, *, log_level: int = logging.WARNING) -> str:
    """Join the cluster named by RAY_ADDRESS (set inside a Ray job), or start one here.

    A cluster started here asks for a token (Ray's default), and has as many logical CPUs as the run needs: workers take
    turns (rollout, then learning), so two real cores can carry more than two workers. Its dashboard listens on
    loopback; so does the rest where the command line started it (`rl.cli.main`: Ray reads that when it is imported).

    Returns:
        The dashboard's address; empty if there is none, or this process was connected already.
    Raises:
        PlacementError: Ray did not start, as on a machine that is too busy.
    """
    if ray.is_initialized():
        return ""  # the caller that connected knows the dashboard
    if os.environ.get("RAY_ADDRESS"):
        return _init(logging_level=log_level, log_to_driver=False).dashboard_url or ""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    needed = sum(bundle.get("CPU", 0.0) for bundle in _bundles(placement, demand))
    try:
        started = _init(
            address="local",  # never join another run's Ray on this machine
            num_cpus=max(os.cpu_count() or 1, int(needed + 1)),
            object_store_memory=object_store_bytes(placement, psutil.virtual_memory().available),
            include_dashboard=placement.dashboard,
            dashboard_host="127.0.0.1",
            logging_level=log_level,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # what Ray itself raises when its processes do not start in time
        raise PlacementError(f"Ray did not start on this machine: {first_line(error)}") from error
    return started.dashboard_url or ""


def _init(**options: Any) -> Any:
    """ray.init that keeps the handler of SIGTERM: Ray's own prints stacks and exits at once.

    Ray's log records go where all others go, not past them to standard error.
    """
    logging.getLogger("ray").handlers.clear()
    logging.getLogger("ray").propagate = True
    if threading.current_thread() is not threading.main_thread():
        return ray.init(**options)  # only the main thread may set handlers
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return ray.init(**options)
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def object_store_bytes(placement: PlacementConfig, available: int) -> int | None:
    """Size of the object store of a Ray started here, from the memory free; None: Ray's own rule.

    On the CPU a policy is small, and so are its clips; the cap leaves the memory to the workers. With a GPU, one push
    of weights alone is gigabytes: Ray takes 30 % of the memory, as far as /dev/shm can hold it.
    """
    if placement.rollout_gpus or placement.learner_gpus:
        return None
    return min(OBJECT_STORE_BYTES, available // 4)


class Slots:
    """One reserved bundle per worker. `options("rollout", 0)` goes into `.options(**...)` of the worker's actor."""

    def __init__(self, placement: PlacementConfig, demand: Demand) -> None:
        self._bundles = _bundles(placement, demand)
        self._first = {"rollout": 0, "reward": demand.rollout, "learner": demand.rollout + demand.reward}
        may_grow = bool(os.environ.get("RAY_ADDRESS"))  # an autoscaler adds nodes for what is asked for
        if not may_grow:
            check_capacity(self._bundles)
        self._group: PlacementGroup = placement_group(
            self._bundles, strategy="PACK" if placement.colocate else "SPREAD"
        )
        try:
            ray.get(self._group.ready(), timeout=placement.timeout_s)
        except GetTimeoutError as error:
            remove_placement_group(self._group)
            check_capacity(self._bundles)
            raise PlacementError(
                f"no room for the run within {placement.timeout_s:.0f} s (placement.timeout_s): it needs "
                f"{self._bundles}, free now: {ray.available_resources()}"
            ) from error

    def options(self, kind: str, index: int) -> dict[str, Any]:
        """Actor options of worker `index` of a kind: its name in the dashboard, its resources, its bundle."""
        bundle = self._first[kind] + index
        return {
            "name": f"{kind}/{index}",
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


def check_capacity(bundles: list[Mapping[str, float]]) -> None:
    """Refuse what the cluster can never provide (Ray itself would wait silently).

    Raises:
        PlacementError: with what is needed, what the cluster has, and which keys to change.
    """
    total = ray.cluster_resources()
    for resource in ("CPU", "GPU"):
        needed = sum(bundle.get(resource, 0.0) for bundle in bundles)
        if needed > total.get(resource, 0.0) + 1e-6:
            raise PlacementError(
                f"the run needs {needed:g} {resource} but the cluster has {total.get(resource, 0.0):g}: add nodes, or "
                f"lower rollout.num_workers, learner.num_ranks or placement.*_{resource.lower()}s"
            )


def _bundles(placement: PlacementConfig, demand: Demand) -> list[dict[str, float]]:
    def bundle(cpus: float, gpus: float = 0.0) -> dict[str, float]:
        return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})

    return (
        [bundle(placement.rollout_cpus, placement.rollout_gpus)] * demand.rollout
        + [bundle(placement.reward_cpus)] * demand.reward
        + [bundle(placement.learner_cpus, placement.learner_gpus)] * demand.learner
    )
