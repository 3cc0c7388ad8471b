"""A small hand-written group that every configured reward is tried on before a run starts (`dynframe check`)."""

from __future__ import annotations

from rl.trajectory import (
    SPAN_FPS,
    AnswerKind,
    Call,
    Completion,
    GrantedCall,
    RefusedCall,
    RetrievalCall,
    Segment,
    StopReason,
    TimeSpan,
    ToolCall,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

REGION = (100.0, 100.0, 300.0, 300.0)  # that a zoom should show: thousandths of the frame
REFERENCES = {  # kind of answer -> (right, wrong)
    AnswerKind.LETTER: ("B", "C"),
    AnswerKind.SPAN: ("3.0 - 6.0", "0.0 - 1.0"),
    AnswerKind.NUMBER: ("1.5", "15"),
    AnswerKind.SCORE: ("3-1", "1-3"),
    AnswerKind.OPEN: ("a red ball", "a blue cube"),
}


def golden_group(kind: AnswerKind = AnswerKind.LETTER, tool: str = "") -> TrajectoryGroup:
    """Four siblings: looked well and answered well, looked elsewhere and answered badly, asked badly, never looked.

    Args:
        tool: whose calls they make; empty: looks. The calls of a user's tool are refused: what it takes is not known.
    """
    right, wrong = REFERENCES[kind]
    task = VideoTask(
        task_id=f"golden/{kind}",
        video_path="/golden.mp4",
        question="What appears in the middle of the video?",
        answer=right,
        answer_kind=kind,
        evidence_span=TimeSpan(3.0, 6.0),
        evidence_fps=4.0,
        extra={"box": list(REGION)} if tool == "zoom" else {},
    )
    well, elsewhere, badly = _requests(tool)
    looked_well, looked_elsewhere = _trajectory(*well, right), _trajectory(*elsewhere, wrong)
    asked_badly = _trajectory(*badly, wrong)
    never_looked = _trajectory("", None, right)
    siblings = (looked_well, looked_elsewhere, asked_badly, never_looked)
    return TrajectoryGroup(task, siblings, coarse_frames=None, duration_s=8.0)


def _requests(tool: str) -> tuple[tuple[str, Call], ...]:
    """A good call, a bad one and a refused one, each as text and as what came of it."""
    if tool in ("", SPAN_FPS):
        return (
            ("<span>3.0 - 6.0</span><fps>4</fps>", _call(3.0, 6.0, 4.0)),
            ("<span>0.0 - 2.0</span><fps>1</fps>", _call(0.0, 2.0, 1.0)),
            ("<span>6.0 - 3.0</span><fps>4</fps>", RefusedCall("the window is reversed")),
        )
    if tool == "zoom":
        return (
            ("<zoom>4</zoom><box>100 100 300 300</box>", _zoom(4.0, REGION)),
            ("<zoom>1</zoom><box>500 500 900 900</box>", _zoom(1.0, (500.0, 500.0, 900.0, 900.0))),
            ("<zoom>4</zoom><box>300 100 100 300</box>", RefusedCall("the box is reversed or empty", tool)),
        )
    return (("", RefusedCall("what it takes is not known", tool)),) * 3


def _zoom(time_s: float, box: tuple[float, ...]) -> ToolCall:
    return ToolCall("zoom", {"time_s": time_s, "box": box}, (), TimeSpan(time_s, time_s), box, num_frames=1)


def _trajectory(request: str, call: Call | None, answer: str) -> Trajectory:
    shown = "<video>" if isinstance(call, GrantedCall) else ""
    text = f"<think>Let me look. {request}{shown}Now I know.</think><answer>{answer}</answer>"
    last = Turn((3,), Completion((4, 5), (-0.5, -0.1), "stop", 0), Segment.REASONING)
    first = Turn((0, 1), Completion((2,), (-0.3,), "stop", 0), Segment.SAMPLING, call)
    return Trajectory((last,) if call is None else (first, last), StopReason.ANSWERED, text)


def _call(start_s: float, end_s: float, fps: float) -> RetrievalCall:
    window = TimeSpan(start_s, end_s)
    return RetrievalCall(window, fps, window, fps, num_frames=max(1, int(window.length_s * fps)))
