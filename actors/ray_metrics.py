"""A run's numbers as Ray metrics: in the dashboard's Metrics view, and for Prometheus and Grafana behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

from rl.metrics import describe


class RayMetricsSink:
    """One gauge per metric, `dynframe_reward_sampling` for "reward/sampling", tagged with the run's name."""

    holds_text = False

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Set every gauge, and the step itself."""
        for name, value in {**metrics, "step": float(step)}.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(gauge_name(name), description=_description(name), tag_keys=("run",))
            self._gauges[name].set(value, tags={"run": self._run})

    def close(self) -> None:
        """Gauges vanish with the process that set them."""
        self._gauges.clear()


def gauge_name(name: str) -> str:
    """A metric's name in Prometheus: letters, digits and underscores."""
    return "dynframe_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _description(name: str) -> str:
    if name == "step":
        return "training step"
    unit, meaning = describe(name)
    return f"{meaning} [{unit}]" if unit else meaning
