"""Steps that were sampled before the checkpoint and are learned from after it: the file sampled_steps.json.gz.

Where rollouts run ahead (trainer.max_policy_lag), the next step has been sampled with older weights than the
checkpoint holds. It cannot be sampled again from them, so its groups are kept: token ids, log-probs, versions, calls,
rewards. Two things are left out, for they are elsewhere: tasks, named by their ids, and pixels, which are decoded again
from the clip and compared by their digests.

Every object of ours is a mapping with its class under "is", so that nothing but these classes can come of a file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rl.checkpoint.manifest import DamagedError
from rl.trajectory import (
    AnswerKind,
    ClipFailure,
    Completion,
    ErrorLocation,
    Frames,
    MalformedCall,
    RefusedCall,
    RetrievalCall,
    RewardFailure,
    SampledStep,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TimeSpan,
    ToolCall,
    ToolFailure,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

SAMPLED_STEPS = "sampled_steps.json.gz"
CLASSES = {
    one.__name__: one
    for one in (
        *(ClipFailure, Completion, ErrorLocation, Frames, MalformedCall, RefusedCall, RetrievalCall, RewardFailure),
        *(ToolCall, ToolFailure),
        *(SampledStep, ScoredGroup, SegmentRewards, TimeSpan, Trajectory, TrajectoryGroup, Turn),
    )
}
ENUMS = {one.__name__: one for one in (AnswerKind, Segment, StopReason)}
ELSEWHERE = "pixels_THWC"  # the field that is not written


def write_sampled_steps(folder: Path, steps: Mapping[int, SampledStep]) -> None:
    """Write the steps, by their numbers, into a checkpoint that is being made.

    Raises:
        OSError: the disk failed.
    """
    plain = json.dumps([[step, _plain(sampled)] for step, sampled in sorted(steps.items())])
    (folder / SAMPLED_STEPS).write_bytes(gzip.compress(plain.encode(), compresslevel=3, mtime=0))


def read_sampled_steps(folder: Path, task_of: Callable[[str], VideoTask]) -> dict[int, SampledStep]:
    """The steps that a checkpoint brings along, by their numbers, without pixels; none: it has no such file.

    Args:
        task_of: the task of an id; KeyError: there is none.
    Raises:
        DamagedError: the file is not what was written.
    """
    path = folder / SAMPLED_STEPS
    if not path.is_file():
        return {}
    try:
        read = json.loads(gzip.decompress(path.read_bytes()))
        return {int(step): _object(sampled, task_of) for step, sampled in read}
    except KeyError as error:
        raise DamagedError(f"{path}: it names {error}, which is no task of data.train and no type of ours") from error
    except (OSError, EOFError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not readable: {error}") from error


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, VideoTask):
        return {"is": "task", "id": value.task_id}
    if isinstance(value, Enum):
        return {"is": type(value).__name__, "value": value.value}
    if is_dataclass(value):
        named = {one.name: _plain(getattr(value, one.name)) for one in fields(value) if one.name != ELSEWHERE}
        return {"is": type(value).__name__, **named}
    if isinstance(value, Mapping):
        return {"is": "mapping", "items": [[name, _plain(item)] for name, item in value.items()]}
    if isinstance(value, tuple | list):
        return value if all(type(item) in (int, float) for item in value) else [_plain(item) for item in value]
    return value


def _object(value: Any, task_of: Callable[[str], VideoTask]) -> Any:
    """What `_plain` was given; lists come back as tuples, as our types have them."""
    if isinstance(value, list):
        return (
            tuple(value) if value and type(value[0]) in (int, float) else tuple(_object(one, task_of) for one in value)
        )
    if not isinstance(value, dict):
        return value
    given = dict(value)
    match given.pop("is"):
        case "task":
            return task_of(given["id"])
        case "mapping":
            return {name: _object(item, task_of) for name, item in given["items"]}
        case name if name in ENUMS:
            return ENUMS[name](given["value"])
        case name:
            absent = {ELSEWHERE: None} if CLASSES[name] is Frames else {}
            return CLASSES[name](**{one: _object(item, task_of) for one, item in given.items()}, **absent)
