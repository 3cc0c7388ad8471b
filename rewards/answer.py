"""Is the answer right? Read from the body of <answer>…</answer> only."""

from __future__ import annotations

from envs.answers.comparison import score_answer, score_leniently
from rl.trajectory import Trajectory, VideoTask

READINGS = ("strict", "lenient")


def answer(task: VideoTask, trajectory: Trajectory, *, reading: str = "strict") -> float:
    """R_ans: the answer compared with the reference in the way the task's kind of answer asks for.

    Letter: the same letter. Span: IoU. Number: the same value and unit. Score: the same points. Open: equal after
    normalisation. No answer, two answers or one that cannot be read score 0.

    Args:
        reading: strict, the forms that the prompt asks for; lenient, whatever is unmistakable ("**B**", "Answer: B").
    Raises:
        ValueError: unknown `reading`, or the reference itself cannot be read: the row is wrong, not the policy.
    """
    if reading not in READINGS:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {reading!r}")
    body = answer_body(trajectory.answer_text)
    if body is None:
        return 0.0
    try:
        if reading == "lenient":
            return score_leniently(body, task.answer, task.answer_kind, task.question)
        return score_answer(body, task.answer, task.answer_kind)
    except ValueError as error:
        raise ValueError(f"task {task.task_id}: {error}") from error


def answer_body(text: str) -> str | None:
    """What stands between <answer> and </answer>; None unless there is exactly one of each, in order.

    Several answers are no answer: a policy that writes A, B, C and D has not chosen.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    before, _, rest = text.partition("<answer>")
    body, closing, _ = rest.partition("</answer>")
    return body.strip() if closing and "</answer>" not in before else None
