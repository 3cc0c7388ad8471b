"""Tasks and trajectories that fit in the eye."""

import pytest

from rl.trajectory import (
    AnswerKind,
    Completion,
    MalformedCall,
    RetrievalCall,
    Segment,
    StopReason,
    TimeSpan,
    Trajectory,
    Turn,
    VideoTask,
)


@pytest.fixture
def task():
    def make(answer="B", kind=AnswerKind.LETTER, evidence=(3.0, 6.0), fps=4.0):
        window = TimeSpan(*evidence) if evidence else None
        return VideoTask("t", "/clip.mp4", "What?", answer, kind, window, fps)

    return make


@pytest.fixture
def call():
    def make(start_s, end_s, fps=4.0):
        window = TimeSpan(start_s, end_s)
        return RetrievalCall(window, fps, window, fps, num_frames=4)

    return make


@pytest.fixture
def trajectory_of():
    """A trajectory that made these calls and wrote this text."""

    def make(text="<think>T</think><answer>B</answer>", calls=(), stop=StopReason.ANSWERED):
        looks = tuple(Turn((1,), Completion((2,), (-0.1,), "stop", 0), Segment.SAMPLING, call) for call in calls)
        last = Turn((3,), Completion((4,), (-0.1,), "stop", 0), Segment.REASONING)
        return Trajectory((*looks, last), stop, text)

    return make


@pytest.fixture
def malformed():
    return MalformedCall("reversed")
