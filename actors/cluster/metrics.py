"""A run's numbers as Ray metrics: in the dashboard's Metrics view, and for Prometheus and Grafana behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from rl.tracking.faults import COUNTED
from rl.tracking.metrics import describe


class RayMetricsSink:
    """One gauge per metric, `dynframe_reward_sampling` for "reward/sampling", tagged with the run's name.

    Faults are counters: a gauge would go on showing the fault of one step through all those that had none.
    """

    holds_text = False

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Set every gauge, and the step itself; add to the counters."""
        for name, value in {**metrics, "step": float(step)}.items():
            if name.startswith(COUNTED):
                self._count(name, value)
            else:
                self._set(name, value)

    def close(self) -> None:
        """Gauges and counters vanish with the process that set them."""
        self._gauges.clear()
        self._counters.clear()

    def _set(self, name: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(gauge_name(name), description=_description(name), tag_keys=("run",))
        self._gauges[name].set(value, tags=self._tags)

    def _count(self, name: str, value: float) -> None:
        if name not in self._counters:
            self._counters[name] = Counter(gauge_name(name), description=_description(name), tag_keys=("run",))
        if value > 0:
            self._counters[name].inc(value, tags=self._tags)


def gauge_name(name: str) -> str:
    """A metric's name in Prometheus: letters, digits and underscores."""
    return "dynframe_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _description(name: str) -> str:
    if name == "step":
        return "training step"
    unit, meaning = describe(name)
    return f"{meaning} [{unit}]" if unit else meaning
