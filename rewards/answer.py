"""Is the answer right? Read from the body of <answer>…</answer> only."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import TypeVar

from rewards.temporal_iou import interval_iou
from rl.trajectory import AnswerKind, TimeSpan, Trajectory, VideoTask

Reference = TypeVar("Reference", str, TimeSpan)

_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z]))(?:[.):](?:\s.*)?|(?<=\))\s.*)?", re.DOTALL)
_NUMBER = r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
_SECONDS = r"\s*(?:s|sec|secs|seconds)?\.?"
_SPAN = re.compile(rf"(?:from\s+)?{_NUMBER}{_SECONDS}\s*(?:-|–|—|to)\s*{_NUMBER}{_SECONDS}", re.IGNORECASE | re.ASCII)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def answer(task: VideoTask, trajectory: Trajectory) -> float:
    """R_ans: the answer compared with the reference in the way the task's kind of answer asks for.

    Letter: the same letter. Span: IoU. Open: equal after normalisation. No answer, two answers or one that cannot be
    read score 0.

    Raises:
        ValueError: the reference itself cannot be read: the row is wrong, not the policy.
    """
    body = answer_body(trajectory.answer_text)
    match task.answer_kind:
        case AnswerKind.LETTER:
            return float(body is not None and letter(body) == _required(letter(task.answer), task, "a letter"))
        case AnswerKind.SPAN:
            reference = _required(span(task.answer), task, "a span 'a - b'")
            asked = None if body is None else span(body)
            return 0.0 if asked is None else interval_iou(asked, reference)
        case AnswerKind.OPEN:
            reference = _required(normalised(task.answer), task, "text")
            return float(body is not None and normalised(body) == reference)


def answer_body(text: str) -> str | None:
    """What stands between <answer> and </answer>; None unless there is exactly one of each, in order.

    Several answers are no answer: a policy that writes A, B, C and D has not chosen.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    before, _, rest = text.partition("<answer>")
    body, closing, _ = rest.partition("</answer>")
    return body.strip() if closing and "</answer>" not in before else None


def letter(text: str) -> str | None:
    """The option chosen, upper case: "B", "b", "(B)", "B.", "B. text", "B) text", "(B) text", "B: text".

    A bare letter followed by words ("A dog runs") is no choice: it is an article as often as an option.
    """
    found = _LETTER.fullmatch(text.strip())
    return (found[1] or found[2]).upper() if found else None


def span(text: str) -> TimeSpan | None:
    """A window in seconds: "3 - 8.5", "3s-8.5s", "from 3 to 8.5 seconds"; None if unreadable or not forward in time."""
    found = _SPAN.fullmatch(text.strip())
    if found is None or float(found[2]) <= float(found[1]):
        return None
    return TimeSpan(float(found[1]), float(found[2]))


def normalised(text: str) -> str:
    """Lower case, Unicode-normalised, without ASCII punctuation, articles and superfluous blanks (as SQuAD does)."""
    lower = unicodedata.normalize("NFKC", text).lower()
    without_punctuation = lower.translate(str.maketrans("", "", string.punctuation))
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def _required(reference: Reference | None, task: VideoTask, wanted: str) -> Reference:
    if not reference:
        raise ValueError(f"task {task.task_id}: the reference answer {task.answer!r} is not {wanted}")
    return reference
