"""Pixels bypass the driver: a group on its way between workers holds object-store references in their place.

The worker that decoded pixels puts them into the object store (`park`), the worker that needs them gets them (`fetch`);
the driver sees timestamps, scene lengths and digests only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import ray
from ray.exceptions import RayError

from rl.trajectory import Frames, TrainingSample, Trajectory, TrajectoryGroup

FETCH_S = 120.0  # to get pixels out of the object store, possibly from another node


class FramesLostError(RuntimeError):
    """Pixels are no longer in the object store: the worker or node that owned them is gone."""


def park(group: TrajectoryGroup) -> TrajectoryGroup:
    """Put the pixels of every distinct block into the object store and hold references instead."""
    blocks = blocks_of([group])
    parked = {digest: replace(block, pixels_THWC=ray.put(block.pixels_THWC)) for digest, block in blocks.items()}
    return exchange(group, parked)


def fetch(groups: list[TrajectoryGroup]) -> list[TrajectoryGroup]:
    """The same groups with their pixels in place (zero-copy views of the object store).

    Raises:
        FramesLostError: they are no longer in the object store.
    """
    fetched = _fetched(blocks_of(groups))
    return [exchange(group, fetched) for group in groups]


def fetch_samples(samples: list[TrainingSample]) -> list[TrainingSample]:
    """As `fetch`, for samples."""
    fetched = _fetched({block.digest: block for sample in samples for block in sample.videos})
    return [replace(sample, videos=tuple(fetched[block.digest] for block in sample.videos)) for sample in samples]


def blocks_of(groups: Iterable[TrajectoryGroup]) -> dict[str, Frames]:
    """Distinct blocks by digest: siblings share the coarse frames, and may have retrieved the same window."""
    blocks: dict[str, Frames] = {}
    for group in groups:
        turns = [turn for trajectory in group.trajectories_G for turn in trajectory.turns]
        for block in (group.coarse_frames, *(turn.frames for turn in turns)):
            if block is not None:
                blocks.setdefault(block.digest, block)
    return blocks


def exchange(group: TrajectoryGroup, blocks: Mapping[str, Frames]) -> TrajectoryGroup:
    """The same group with every block replaced by the one of the same digest."""

    def swap(block: Frames | None) -> Frames | None:
        return None if block is None else blocks[block.digest]

    def in_trajectory(trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, turns=tuple(replace(turn, frames=swap(turn.frames)) for turn in trajectory.turns))

    return replace(
        group,
        coarse_frames=swap(group.coarse_frames),
        trajectories_G=tuple(in_trajectory(trajectory) for trajectory in group.trajectories_G),
    )


def _fetched(blocks: dict[str, Frames]) -> dict[str, Frames]:
    try:
        pixels = ray.get([block.pixels_THWC for block in blocks.values()], timeout=FETCH_S)
    except RayError as error:
        raise FramesLostError(f"pixels could not be fetched: {type(error).__name__}") from error
    return {d: replace(b, pixels_THWC=p) for (d, b), p in zip(blocks.items(), pixels, strict=True)}
