"""Queries of Prometheus in the names of rl.tracking.metrics, and the panels that they are drawn on.

A query takes the largest value of a run: one that was resumed has two series for some seconds, one of each driver.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rl.tracking.metrics import COUNTERS, STEP, describe, prometheus_name

RUNS = 'run=~"$run"'  # the runs that are chosen on the dashboard
PART = "part"  # label that tells apart the metrics of one prefix


@dataclass(frozen=True, slots=True)
class Query:
    """A curve per run, or per run and name where the metric is a prefix.

    Raises:
        KeyError: the metric is not declared.
    """

    metric: str  # what ends in / stands for all that begin with it
    legend: str = ""  # beside the run's name

    def __post_init__(self) -> None:
        describe(self.metric)

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for all metrics that begin with it."""
        return self.metric.endswith("/")

    @property
    def expression(self) -> str:
        """In PromQL, with $run for the runs that are chosen."""
        none = f"0 * max by (run) ({prometheus_name(STEP)}{{{RUNS}}})"  # where nothing was counted yet
        if not self.is_prefix:
            found = f"max by (run) ({prometheus_name(self.metric)}{{{RUNS}}})"
            return f"{found} or {none}" if self.metric in COUNTERS else found
        names = re.sub("_(_total)?$", r"_(.+)\1", prometheus_name(self.metric))
        found = f'label_replace({{__name__=~"{names}", {RUNS}}}, "{PART}", "$1", "__name__", "{names}")'
        found = f"max by (run, {PART}) ({found})"
        if self.metric not in COUNTERS:
            return found
        return f'{found} or on (run) label_replace({none}, "{PART}", "none", "", "")'

    @property
    def curve(self) -> str:
        """What Grafana calls a curve."""
        return f"{{{{run}}}} {self.legend or f'{{{{{PART}}}}}'}" if self.legend or self.is_prefix else "{{run}}"


@dataclass(frozen=True, slots=True)
class NodeQuery:
    """A curve per node, from what Ray itself measures there."""

    expression: str
    legend: str = ""

    @property
    def curve(self) -> str:
        """What Grafana calls a curve."""
        return f"{{{{instance}}}} {self.legend}".strip()


@dataclass(frozen=True, slots=True)
class Panel:
    """A diagram."""

    title: str
    unit: str  # as Grafana calls it
    queries: tuple[Query | NodeQuery, ...]
    only_gpus: bool  # runs on CPUs have no such numbers

    @property
    def meaning(self) -> str:
        """Unit and meaning of every metric in it."""
        told = [(query.metric, *describe(query.metric)) for query in self.queries if isinstance(query, Query)]
        lines = [f"{metric} [{unit}]: {meaning}" for metric, unit, meaning in told]
        return "\n\n".join([*lines, *(["only where GPUs are"] if self.only_gpus else [])])


@dataclass(frozen=True, slots=True)
class Section:
    """A dashboard."""

    name: str  # of its file
    title: str
    panels: tuple[Panel, ...]


def panel(title: str, unit: str, *queries: str | tuple[str, str] | NodeQuery, only_gpus: bool = False) -> Panel:
    """A panel of metrics, each as its name, or as (name, legend), and of queries of nodes."""
    made = [
        Query(query) if isinstance(query, str) else Query(*query) if isinstance(query, tuple) else query
        for query in queries
    ]
    return Panel(title, unit, tuple(made), only_gpus)
