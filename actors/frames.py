"""Pixels stay out of the driver: inside a travelling group they are references into the object store.

The worker that decoded them parks the pixels, the worker that needs them fetches them; everybody in between carries
clocks, scene lengths and digests only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import ray
from ray.exceptions import RayError

from rl.trajectory import Frames, TrainingSample, Trajectory, TrajectoryGroup

FETCH_S = 120.0  # for pixels to come out of the object store, from another node if need be


class FramesLostError(RuntimeError):
    """Pixels are gone from the object store, with the worker or the node that held them."""


def park(group: TrajectoryGroup) -> TrajectoryGroup:
    """Put every block's pixels into the object store, once each, and carry the references instead."""
    blocks = blocks_of([group])
    parked = {digest: replace(block, pixels_THWC=ray.put(block.pixels_THWC)) for digest, block in blocks.items()}
    return exchange(group, parked)


def fetch(groups: list[TrajectoryGroup]) -> list[TrajectoryGroup]:
    """The same groups with their pixels in this process's reach (zero-copy views of the object store).

    Raises:
        FramesLostError: they are not there any more.
    """
    held = _fetched(blocks_of(groups))
    return [exchange(group, held) for group in groups]


def fetch_samples(samples: list[TrainingSample]) -> list[TrainingSample]:
    """As `fetch`, for samples."""
    held = _fetched({block.digest: block for sample in samples for block in sample.videos})
    return [replace(sample, videos=tuple(held[block.digest] for block in sample.videos)) for sample in samples]


def blocks_of(groups: Iterable[TrajectoryGroup]) -> dict[str, Frames]:
    """Distinct blocks by digest; siblings share the opening frames, and may have asked for the same window."""
    found: dict[str, Frames] = {}
    for group in groups:
        turns = [turn for trajectory in group.trajectories_G for turn in trajectory.turns]
        for block in (group.coarse_frames, *(turn.frames for turn in turns)):
            if block is not None:
                found.setdefault(block.digest, block)
    return found


def exchange(group: TrajectoryGroup, blocks: Mapping[str, Frames]) -> TrajectoryGroup:
    """The same group with these blocks, by digest, in place of its own."""

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
