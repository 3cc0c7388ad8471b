"""The connection to Ray: a cluster that is running, or one started on this machine for the run."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError

from actors.cluster.placement import Demand, bundles_of
from actors.cluster.session import RaySession
from actors.worker.waiting import first_line
from rl.config.errors import ConfigError
from rl.config.installation import WORKER_SETUP
from rl.config.trainer import PlacementConfig

OBJECT_STORE_BYTES = 1 << 30  # of a Ray started here for CPUs: frames of a step and a set of weights, many times over
WORKERS = {"runtime_env": {"worker_process_setup_hook": WORKER_SETUP}} if WORKER_SETUP else {}  # of every node
AUTH_MODES = ("token", "disabled")  # of Ray; it takes anything else for "disabled"


class RayConnectionError(RuntimeError):
    """Ray did not start on this machine, or no cluster answered."""


@contextmanager
def connected(placement: PlacementConfig, demand: Demand, *, log_level: int = logging.WARNING) -> Iterator[str]:
    """Join the cluster named by RAY_ADDRESS (set inside a Ray job), or start one here; left, or ended, afterwards.

    A cluster started here asks for a token (Ray's default), and has as many logical CPUs as the run needs: workers take
    turns (rollout, then learning), so two real cores can carry more than two workers. Its dashboard listens on
    loopback; so does the rest where the command line started it (`rl.cli.main`: Ray reads that when it is imported, and
    RAY_AUTH_MODE, too). Where that is set, signals to this process's group do not reach Ray (actors.cluster.session).

    Yields:
        The dashboard's address; empty if there is none, or this process was connected already.
    Raises:
        ConfigError: RAY_AUTH_MODE or the token are not the cluster's.
        RayConnectionError: no cluster answered, or Ray did not start, as on a machine that is too busy.
    """
    if ray.is_initialized():
        yield ""  # the caller that connected knows the dashboard
        return
    require_auth_mode()
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        quietly = {"logging_level": log_level, "log_to_driver": False, **WORKERS}
        if address := os.environ.get("RAY_ADDRESS"):
            yield _join(address, quietly).dashboard_url or ""
            return
        try:
            started = _start_here(_options(placement, demand), quietly, stack)
        except Exception as error:  # what Ray itself raises when its processes do not start in time
            raise RayConnectionError(f"Ray did not start on this machine: {first_line(error)}") from error
        yield started.dashboard_url or ""


def require_auth_mode() -> None:
    """Refuse a RAY_AUTH_MODE that Ray does not know: it would take it for "disabled".

    Raises:
        ConfigError: with the values there are.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode and mode.lower() not in AUTH_MODES:
        raise ConfigError(f"RAY_AUTH_MODE is {mode!r}: it must be one of {', '.join(AUTH_MODES)}, or unset")


def _options(placement: PlacementConfig, demand: Demand) -> dict[str, Any]:
    """Of ray.init, for a cluster of this run alone on this machine."""
    needed = sum(bundle.get("CPU", 0.0) for bundle in bundles_of(placement, demand))
    return {
        "address": "local",  # never join another run's Ray on this machine
        "num_cpus": max(os.cpu_count() or 1, int(needed + 1)),
        "object_store_memory": object_store_bytes(placement, psutil.virtual_memory().available),
        "include_dashboard": placement.dashboard,
        "dashboard_host": "127.0.0.1",
        "_node_ip_address": "127.0.0.1",
    }


def _start_here(options: dict[str, Any], quietly: dict[str, Any], stack: ExitStack) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would start an idle worker per CPU before it answers; none of ours could be one: each has its own environment
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # when Ray was imported, so that this process could not join with a token
        return _init(**options, **quietly)
    session = RaySession(options | quietly)
    stack.pop_all()  # this process leaves first
    stack.callback(session.stop)
    stack.callback(ray.shutdown)
    return _init(address=session.address, _node_ip_address="127.0.0.1", **quietly)


def _join(address: str, quietly: dict[str, Any]) -> Any:
    try:
        return _init(**quietly)
    except AuthenticationError as error:
        reason = first_line(error).split(". ")[0]
        raise ConfigError(
            f"the Ray cluster at {address} refuses this process: {reason}; put its token (`ray get-auth-token` on its "
            "head) into ~/.ray/auth_token or RAY_AUTH_TOKEN, or set RAY_AUTH_MODE to what the cluster uses"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise RayConnectionError(
            f"no Ray cluster answered at {address} (RAY_ADDRESS): {first_line(error)}; is it up, and is RAY_AUTH_MODE "
            f"({os.environ.get('RAY_AUTH_MODE', 'unset')}) what the cluster uses?"
        ) from error


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
