"""Steps sampled ahead: what a checkpoint brings along of them is what was sampled, but for pixels."""

import gzip
import json
from dataclasses import replace

import pytest

from rl.checkpoint.manifest import DamagedError
from rl.checkpoint.sampled_steps import SAMPLED_STEPS, read_sampled_steps, write_sampled_steps
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
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

TASK = VideoTask("t", "/clips/a.mp4", "?", "B", AnswerKind.LETTER, extra={"is": "no class of ours", "row": object})
COARSE = Frames("reference", (0.0, 0.1 + 0.2), (1, 1), 28, 56, "d0")
LOOK = Frames("reference", (1 / 3,), (1,), 28, 28, "d1")
SPAN = TimeSpan(0.1, 1e-17)


def said(*token_ids):
    return Completion(token_ids, tuple(-1 / (3 + token) for token in token_ids), "stop", 4, 7)


def sampled():
    looked = Trajectory(
        (
            Turn((1, 2), said(5, 6), Segment.SAMPLING, RetrievalCall(SPAN, 2.0, SPAN, 2.0, 1, ("end",)), COARSE),
            Turn((3,), said(8), Segment.SAMPLING, MalformedCall("no number"), LOOK),
            Turn((), said(9), Segment.REASONING, RefusedCall("over the limit")),
        ),
        StopReason.ANSWERED,
        "B ✓ \ud800",
    )
    failed = ClipFailure("/clips/a.mp4", SPAN, "CorruptVideoError", "truncated", "mend it")
    lost = Trajectory((Turn((1,), said(), Segment.REASONING),), StopReason.VIDEO_ERROR, note="n", clip_failure=failed)
    where = ErrorLocation("r.py", 3, "f", "x = 1", "Traceback")
    rewards = (
        SegmentRewards(None, float("-inf"), {"a": 0.1}),
        RewardFailure("a", "raised", "KeyError", "t", where),
    )
    group = TrajectoryGroup(TASK, (looked, lost), COARSE, 1.5, {"decode": 0.25})
    return SampledStep((ScoredGroup(group, rewards), ScoredGroup(replace(group, coarse_frames=None), rewards)), 2, 3.5)


def without_pixels(value):
    """As text, for frames are equal only to themselves."""
    return repr(value).replace("'reference'", "None")


def test_what_is_read_is_what_was_written_to_the_last_bit_without_pixels(tmp_path):
    steps = {3: sampled(), 4: SampledStep(())}
    write_sampled_steps(tmp_path, steps)
    read = read_sampled_steps(tmp_path, {"t": TASK}.__getitem__)
    assert without_pixels(read) == without_pixels(steps)
    trajectory = read[3].groups[0].group.trajectories_G[1]
    assert trajectory.stop_reason is StopReason.VIDEO_ERROR and read[3].groups[0].group.task is TASK


def test_the_same_steps_are_the_same_bytes(tmp_path):
    write_sampled_steps(tmp_path, {3: sampled()})
    first = (tmp_path / SAMPLED_STEPS).read_bytes()
    write_sampled_steps(tmp_path, {3: sampled()})
    assert (tmp_path / SAMPLED_STEPS).read_bytes() == first


def test_a_checkpoint_without_any_brings_none_along(tmp_path):
    assert read_sampled_steps(tmp_path, {}.__getitem__) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([[3, {"is": "task", "id": "gone"}]], "names 'gone', which is no task"),
        ([[3, {"is": "Popen", "args": "sh"}]], "names 'Popen'"),
        ([[3, {"is": "SampledStep", "groups": [], "more": 1}]], "not readable"),
        ([[3, {"is": "StopReason", "value": "tired"}]], "not readable"),
        ([[3, []], 4], "not readable"),
        ({"is": "SampledStep"}, "not readable"),
    ],
)
def test_what_is_no_such_file_is_refused_with_its_path(tmp_path, content, says):
    (tmp_path / SAMPLED_STEPS).write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(DamagedError, match=f"{SAMPLED_STEPS}: .*{says}"):
        read_sampled_steps(tmp_path, {"t": TASK}.__getitem__)


def test_a_file_that_is_no_gzip_is_refused(tmp_path):
    (tmp_path / SAMPLED_STEPS).write_bytes(b"{}")
    with pytest.raises(DamagedError, match="not readable"):
        read_sampled_steps(tmp_path, {}.__getitem__)
