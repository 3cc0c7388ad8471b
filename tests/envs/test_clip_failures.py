"""A clip that cannot be decoded is named once per step, with its window and the remedy."""

from envs.clip_failures import clip_failure, clip_failure_line, distinct_clip_failures
from envs.video.file import CorruptVideoError
from rl.trajectory import AnswerKind, StopReason, TimeSpan, Trajectory, TrajectoryGroup, VideoTask


def group(task_id, *failures):
    task = VideoTask(task_id, "/a.mp4", "What?", "B", AnswerKind.LETTER)
    siblings = tuple(Trajectory((), StopReason.VIDEO_ERROR, clip_failure=failure) for failure in failures)
    return TrajectoryGroup(task, siblings, coarse_frames=None)


def failure(path="/a.mp4", window=None):
    return clip_failure(CorruptVideoError(path, "is truncated\nat 3 s", "download it again"), window)


def test_the_line_names_clip_window_problem_and_remedy():
    line = clip_failure_line(failure(window=TimeSpan(3.0, 6.5)))

    assert line.startswith("CorruptVideoError: /a.mp4 (window 3 - 6.5 s): is truncated at 3 s; download it again; ")
    assert "dynframe validate-data" in line


def test_each_clip_is_told_once_with_its_first_trajectory():
    step = [group("t0", None, None), group("t1", None, failure()), group("t2", failure("/b.mp4"), failure())]

    first, second = distinct_clip_failures(step)

    assert (first.failure.path, first.task_id, first.group, first.sibling, first.count) == ("/a.mp4", "t1", 1, 1, 2)
    assert (second.failure.path, second.task_id, second.group, second.count) == ("/b.mp4", "t2", 2, 1)
