"""Pixels bypass the driver: groups and samples travel without them, and are given them back where they are needed.

A rollout worker returns a group's pixels as an object of their own (`without_pixels`, `with_pixels`; actors.groups).
Supervised samples hold object-store references in their place (`park`, `fetch_samples`). Either way the
driver sees timestamps, scene lengths and digests only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import ray
from ray.exceptions import RayError

from rl.trajectory import Frames, TrainingSample, Trajectory, TrajectoryGroup

Pixels = Mapping[str, np.ndarray]  # uint8 (T, H, W, RGB), by the block's digest

FETCH_S = 120.0  # to get pixels out of the object store, possibly from another node


class FramesLostError(RuntimeError):
    """Pixels are no longer in the object store: the worker or node that owned them is gone."""


def without_pixels(group: TrajectoryGroup) -> tuple[TrajectoryGroup, Pixels]:
    """The group with None in place of all pixels, and those of every distinct block."""
    blocks = blocks_of([group])
    bare = {digest: replace(block, pixels_THWC=None) for digest, block in blocks.items()}
    return exchange(group, bare), {digest: block.pixels_THWC for digest, block in blocks.items()}


def with_pixels(group: TrajectoryGroup, pixels: Pixels) -> TrajectoryGroup:
    """The group with its pixels in place."""
    return exchange(group, {d: replace(b, pixels_THWC=pixels[d]) for d, b in blocks_of([group]).items()})


def park(sample: TrainingSample) -> TrainingSample:
    """Put the pixels of every distinct block into the object store and hold references instead."""
    blocks = {block.digest: block for block in sample.videos}
    parked = {digest: replace(block, pixels_THWC=ray.put(block.pixels_THWC)) for digest, block in blocks.items()}
    return replace(sample, videos=tuple(parked[block.digest] for block in sample.videos))


def fetch_samples(samples: list[TrainingSample]) -> list[TrainingSample]:
    """The same samples with their parked pixels in place (zero-copy views of the object store).

    Raises:
        FramesLostError: they are no longer in the object store.
    """
    blocks = {block.digest: block for sample in samples for block in sample.videos}
    try:
        pixels = ray.get([block.pixels_THWC for block in blocks.values()], timeout=FETCH_S)
    except RayError as error:
        raise FramesLostError(f"pixels could not be fetched: {type(error).__name__}") from error
    fetched = {d: replace(b, pixels_THWC=p) for (d, b), p in zip(blocks.items(), pixels, strict=True)}
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
