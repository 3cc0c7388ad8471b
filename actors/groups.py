"""Groups in the object store: references and summaries through the driver, tokens between the workers.

A rollout worker returns a summary and, as objects of their own, the group and its pixels. Ray keeps those where they
were made, owned by the driver: they outlive their worker, not its node. Who needs them gets them there.

| lost | recovered by |
|---|---|
| a group's pixels | decoding its videos again (RolloutPool.restore) |
| a group as well | rolling it out again, with the seeds it had (RolloutPool.restore) |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from actors.frames import FETCH_S, Pixels, with_pixels, without_pixels
from rl.group_summary import GroupSummary, RemoteGroup, RolloutOrigin, summarise
from rl.tracking.fingerprint import group_digests
from rl.trajectory import Completion, TrajectoryGroup

log = logging.getLogger(__name__)

# bytes: an object returned by a worker is kept in the object store if it is larger, else in the memory of the driver
KEPT_BY_DRIVER = {"RAY_max_direct_call_object_size": str(16 * 2**10)}


NewTurns = Mapping[int, Sequence[tuple[int, int, Completion]]]  # by call: sibling, index of the turn, its completion


@dataclass(frozen=True, slots=True)
class EarlierCall:
    """A call that was lost with its worker, and the turns that its heartbeats have reported."""

    call: int
    turns: tuple[ray.ObjectRef, ...]  # to NewTurns, in order


class GroupLostError(RuntimeError):
    """A group is no longer in the object store: the node it lay on is gone."""


def with_summary(group: TrajectoryGroup) -> tuple[GroupSummary, TrajectoryGroup, Pixels]:
    """What a rollout worker returns: what the driver reads, and what it does not."""
    return summarise(group, group_digests(group)), *without_pixels(group)


def held_by_driver(group: TrajectoryGroup, origin: RolloutOrigin) -> RemoteGroup:
    """A group that the driver has read from a disk, without its pixels."""
    return RemoteGroup(group.task, summarise(group, group_digests(group)), ray.put(group), ray.put({}), origin)


def fetch_groups(references: Sequence[ray.ObjectRef]) -> list[TrajectoryGroup]:
    """Groups without their pixels.

    Raises:
        GroupLostError: one of them is no longer in the object store.
    """
    return _fetched(references)


def fetch_whole_groups(held: Sequence[tuple[ray.ObjectRef, ray.ObjectRef]]) -> list[TrajectoryGroup]:
    """Groups with their pixels, as views of the object store.

    Args:
        held: references to each group and to its pixels.
    Raises:
        GroupLostError: one of them is no longer in the object store.
    """
    fetched = _fetched([reference for pair in held for reference in pair])
    return [with_pixels(group, pixels) for group, pixels in zip(fetched[::2], fetched[1::2], strict=True)]


def fetch_groups_that_are_there(
    held: Sequence[tuple[ray.ObjectRef, ray.ObjectRef]],
) -> tuple[list[TrajectoryGroup | None], list[int]]:
    """As `fetch_whole_groups`, None in place of groups that are lost, whole or in part; and their indices."""
    try:
        return fetch_whole_groups(held), []
    except GroupLostError:
        log.warning("groups, or their pixels, are lost; fetching group by group to find which")
    found: list[TrajectoryGroup | None] = []
    for references in held:
        try:
            found += fetch_whole_groups([references])
        except GroupLostError:
            found.append(None)
    return found, [index for index, group in enumerate(found) if group is None]


def fetch_turns(earlier: Sequence[EarlierCall]) -> dict[int, list[Completion]]:
    """Completions by sibling, in order of turns. Those of a call whose node is lost are left out: sampled again, with
    the seeds they had."""
    completions: dict[int, list[Completion]] = {}
    for lost in earlier:
        try:
            reported = ray.get(list(lost.turns), timeout=FETCH_S)
        except RayError as error:
            log.warning("turns that were sampled on a lost node are sampled again: %s", type(error).__name__)
            continue
        for sibling, turn, completion in (new for turns in reported for new in turns.get(lost.call, ())):
            known = completions.setdefault(sibling, [])
            if turn == len(known):  # without those before it, it is dropped
                known.append(completion)
    return completions


def is_lost(error: RayError) -> bool:
    """Whether a call failed because a group it was given is no longer in the object store."""
    return isinstance(error.cause if isinstance(error, RayTaskError) else error, ObjectLostError)


def load_groups(groups: Sequence[RemoteGroup]) -> list[TrajectoryGroup | None]:
    """Groups with their tokens, for those few that are shown; None: lost with its node."""
    loaded: list[TrajectoryGroup | None] = []
    for group in groups:
        try:
            loaded += fetch_groups([group.reference])
        except GroupLostError as error:
            log.warning("task %s is not recorded: %s", group.task.task_id, error)
            loaded.append(None)
    return loaded


def load_whole_groups(groups: Sequence[RemoteGroup]) -> list[TrajectoryGroup | None]:
    """Groups with tokens and pixels, for the very few that are drawn; None: lost, whole or in part."""
    return fetch_groups_that_are_there([group.references for group in groups])[0]


def _fetched(references: Sequence[ray.ObjectRef]) -> list[Any]:
    try:
        return ray.get(list(references), timeout=FETCH_S)
    except RayError as error:
        raise GroupLostError(f"groups could not be fetched: {type(error).__name__}") from error
