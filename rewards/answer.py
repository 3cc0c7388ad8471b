"""Is the answer right? Read from the body of <answer>…</answer> only."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import TypeVar

from envs.answers import interval_iou, read_letter, read_span
from rl.trajectory import AnswerKind, TimeSpan, Trajectory, VideoTask

Reference = TypeVar("Reference", str, TimeSpan)

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_MARKS = 30  # on one letter, as in Unicode's Stream-Safe Text: no script puts more


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
            option = _required(read_letter(task.answer), task, "a letter")
            return float(body is not None and read_letter(body) == option)
        case AnswerKind.SPAN:
            reference = _required(read_span(task.answer), task, "a span 'a - b'")
            asked = None if body is None else read_span(body)
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


def normalised(text: str) -> str:
    """Lower case, Unicode-normalised, without ASCII punctuation, articles and superfluous blanks (as SQuAD does)."""
    lower = unicodedata.normalize("NFKC", _without_piles(text)).lower()
    without_punctuation = lower.translate(str.maketrans("", "", string.punctuation))
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def _without_piles(text: str) -> str:
    """The text with at most `_MARKS` marks on a letter: they are put in order in time quadratic in their number."""
    if text.isascii():
        return text
    kept, marks = [], 0
    for character in text:
        is_mark = unicodedata.combining(unicodedata.normalize("NFKD", character)[0])
        marks = marks + 1 if is_mark else 0
        if marks <= _MARKS:
            kept.append(character)
    return "".join(kept)


def _required(reference: Reference | None, task: VideoTask, wanted: str) -> Reference:
    if not reference:
        raise ValueError(f"task {task.task_id}: the reference answer {task.answer!r} is not {wanted}")
    return reference
