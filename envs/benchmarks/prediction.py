"""From a finished episode to what it says about an example."""

from __future__ import annotations

from dataclasses import replace

from envs.answers.comparison import can_be_read
from envs.answers.lenient import final_text, in_strict_form
from envs.benchmarks.benchmark import Prediction
from rl.trajectory import RetrievalCall, StopReason, Trajectory, VideoTask

_OPEN, _CLOSE = "<answer>", "</answer>"


def prediction_of(trajectory: Trajectory) -> Prediction | None:
    """The answer of a trajectory and the windows it looked at; None if its video could not be read.

    Of several answers the last one counts, as a policy that corrects itself means it; rewards refuse more than one.
    """
    if trajectory.stop_reason in (StopReason.VIDEO_ERROR, StopReason.TOOL_ERROR):
        return None
    windows = tuple(call.span for call in trajectory.calls if isinstance(call, RetrievalCall))
    return Prediction(last_answer(trajectory.answer_text), windows, said_in_the_end(trajectory.answer_text))


def read_leniently(prediction: Prediction | None, task: VideoTask) -> Prediction | None:
    """The prediction with its answer as the strict readers know it, wherever that is unmistakable; else the same."""
    if prediction is None or not prediction.said:
        return prediction
    answer = in_strict_form(prediction.said, task.answer_kind, task.question)
    return replace(prediction, answer=answer) if can_be_read(answer, task.answer_kind) else prediction


def said_in_the_end(text: str) -> str:
    """The body of the last <answer>…</answer>, or what a policy that writes none says in the end; "" if nothing."""
    body = last_answer(text)
    return final_text(text) if body is None else body


def last_answer(text: str) -> str | None:
    """The stripped body of the last <answer>…</answer>; None if there is no such pair. Linear in the text's length."""
    opening = text.rfind(_OPEN, 0, max(text.rfind(_CLOSE), 0))
    if opening < 0:
        return None
    start = opening + len(_OPEN)
    return text[start : text.index(_CLOSE, start)].strip()
