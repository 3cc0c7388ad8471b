"""Reward terms and the workers that compute them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rl.config.errors import require, require_one_of, shown


@dataclass(frozen=True)
class RewardTermConfig:
    """One reward: a function, the segment it credits, and how much it counts."""

    fn: str = "???"  # built-in name, "package.module:function" or "path/file.py:function"
    segment: str = "reasoning"  # the tokens it credits: sampling (up to the retrieval call) | reasoning (after it)
    # share among the terms of its segment, whose weights are normalised to sum to 1; 0: measured only
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the function
    # several retrieval calls in one trajectory, for this sampling term alone: mean | last | max | sum (what adds up, as
    # a price does); empty: sum for the built-in frame_cost, else scoring.calls
    calls: str = ""
    # the tool whose calls this sampling term scores, by its name; empty: of a built-in reward its own (of zoom_region
    # zoom, of temporal_iou and frame_rate span_fps), else every tool of retrieval.tools
    tool: str = ""

    def __post_init__(self) -> None:
        require(
            not self.tool or self.segment == "sampling",
            f"rewards.*.tool={shown(self.tool)} is of sampling terms, which score calls; leave it empty",
        )
        require_one_of("rewards.*.segment", self.segment, ("sampling", "reasoning"))
        require_one_of("rewards.*.calls", self.calls, ("", "mean", "last", "max", "sum"))
        require(
            not self.calls or self.segment == "sampling",
            f"rewards.*.calls={self.calls} is of sampling terms, which score calls; a reasoning term scores the whole "
            "trajectory: leave it empty",
        )
        require(self.weight >= 0, "rewards.*.weight must be >= 0")


@dataclass(frozen=True)
class ScoringConfig:
    """Reward workers."""

    num_workers: int = 1  # reward workers, each in a process of its own
    calls: str = "mean"  # several retrieval calls in one trajectory: mean | last | max of their sampling rewards
    # for one call of a reward function; a worker that does not return is killed after siblings * timeout_s
    timeout_s: float = 30.0
    # of a step's trajectories without a reward; above it the run stops and names the cause
    max_failed_share: float = 0.25
    # a worker may take so much once its rewards are loaded: a call beyond it fails, a worker beyond half of it is
    # replaced between two groups; 0: no limit
    memory_mib: int = 4096

    def __post_init__(self) -> None:
        require_one_of("scoring.calls", self.calls, ("mean", "last", "max"))
        require(self.num_workers >= 1, f"scoring.num_workers must be >= 1, got {self.num_workers}")
        require(self.timeout_s > 0, f"scoring.timeout_s must be > 0, got {self.timeout_s}")
        require(self.memory_mib >= 0, f"scoring.memory_mib must be >= 0, got {self.memory_mib}")
        require(
            0 <= self.max_failed_share <= 1, f"scoring.max_failed_share must be in [0, 1], got {self.max_failed_share}"
        )
