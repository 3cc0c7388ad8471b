"""A run's numbers as Ray metrics: in the dashboard's Metrics view, and for Prometheus and Grafana behind it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from rl.tracking.metrics import COUNTERS, STEP, TIME, describe, ray_name


class RayMetricsSink:
    """One gauge per metric, `dynframe_reward_sampling` for "reward/sampling", tagged with the run's name.

    Faults and failed saves are counters: a gauge would go on showing those of one step through all that had none.
    """

    holds_text = False

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Set every gauge, the step itself and when it was reported; add to the counters."""
        for name, value in {**metrics, STEP: float(step), TIME: time.time()}.items():
            if name.startswith(COUNTERS):
                self._count(name, value)
            else:
                self._set(name, value)

    def close(self) -> None:
        """Gauges and counters vanish with the process that set them."""
        self._gauges.clear()
        self._counters.clear()

    def _set(self, name: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(ray_name(name), description=_description(name), tag_keys=("run",))
        self._gauges[name].set(value, tags=self._tags)

    def _count(self, name: str, value: float) -> None:
        if name not in self._counters:
            self._counters[name] = Counter(ray_name(name), description=_description(name), tag_keys=("run",))
        if value > 0:
            self._counters[name].inc(value, tags=self._tags)


def _description(name: str) -> str:
    unit, meaning = describe(name)
    return f"{meaning} [{unit}]" if unit else meaning
