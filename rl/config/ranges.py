"""Numbers that no configuration can use, whatever their key: not finite, negative, or beyond what clocks take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rl.config.errors import require

MOST_SECONDS = 1e8  # three years; clocks and locks overflow somewhere beyond
ABOVE_ZERO = (
    "data.quickstart.duration_s",
    "data.quickstart.native_fps",
    "rollout.engine.gpu_memory_utilization",
    "learner.timeout_s",
    "weight_sync.timeout_s",
    "placement.timeout_s",
)
AT_LEAST_ONE = (  # numbers that are sizes or counts of something there has to be
    "data.quickstart.train_clips",
    "data.quickstart.size",
    "video.coarse.max_pixels",
    "video.coarse.max_visual_tokens",
    "retrieval.max_pixels",
    "rollout.engine.kv_cache_bytes",
    "weight_sync.bucket_bytes",
)


def refuse_impossible_numbers(values: Mapping[str, Any]) -> None:
    """Of every section: no NaN, nothing infinite, nothing below 0, nothing that overflows where it is used."""
    for key, value in _numbers(values):
        found = "a huge integer" if isinstance(value, int) and abs(value) >= 2**63 else repr(value)
        require(isinstance(value, int) or math.isfinite(value), f"{key} must be a finite number, got {found}")
        require(-(2**63) <= value < 2**63, f"{key} must be below 2**63, got {found}")
        if key.startswith("rewards.") and ".args." in key:
            continue  # what they may be is the function's business
        require(value >= 0, f"{key} must be >= 0, got {found}")
        require(not key.endswith("_s") or value <= MOST_SECONDS, f"{key} must be <= {MOST_SECONDS:g} s, got {found}")
        require(key not in ABOVE_ZERO or value > 0, f"{key} must be > 0, got {found}")
        if key in AT_LEAST_ONE or key.startswith("policy.tiny."):
            require(value >= 1, f"{key} must be >= 1, got {found}")


def _numbers(node: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _numbers(value, f"{key}[{place}]")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield key, node
