"""How right an answer is, by kind: the one comparison that rewards use, and that every reference has to pass."""

from __future__ import annotations

import re
from typing import TypeVar

from envs.answers.characters import usual_characters
from envs.answers.lenient import in_strict_form
from envs.answers.letters import read_letter
from envs.answers.numbers import read_number
from envs.answers.text import normalised, trimmed
from envs.answers.windows import interval_iou, read_span
from rl.trajectory import AnswerKind

Read = TypeVar("Read")
WANTED = {
    AnswerKind.LETTER: "a letter ('B', '(B)', 'B. text')",
    AnswerKind.SPAN: "a window 'a - b' in seconds, forward in time",
    AnswerKind.NUMBER: "a number, as 1000.5, -5, 1/2 or 25 %",
    AnswerKind.SCORE: "a score, as 3-1 or 3:1",
    AnswerKind.OPEN: "text that says something",
}
_SCORE = re.compile(r"[0-9]{1,4}(?:\s?(?:[-:]|to)\s?[0-9]{1,4}){1,4}")
_LONGEST_SCORE = 60  # characters


def score_answer(answer: str, reference: str, kind: AnswerKind) -> float:
    """1 for the same letter, number, score or text, IoU for a window; 0 for what cannot be read.

    Raises:
        ValueError: the reference itself cannot be read as its kind.
    """
    match kind:
        case AnswerKind.LETTER:
            return float(read_letter(answer) == _readable(read_letter(reference), reference, kind))
        case AnswerKind.SPAN:
            window, evidence = read_span(answer), _readable(read_span(reference), reference, kind)
            return 0.0 if window is None else interval_iou(window, evidence)
        case AnswerKind.NUMBER:
            same_number = read_number(answer) == _readable(read_number(reference), reference, kind)
            return float(same_number or normalised(answer) == normalised(reference))
        case AnswerKind.SCORE:
            return float(read_score(answer) == _readable(read_score(reference), reference, kind))
        case AnswerKind.OPEN:
            return float(normalised(answer) == _readable(normalised(reference), reference, kind))


def score_leniently(answer: str, reference: str, kind: AnswerKind, question: str = "") -> float:
    """The score of what an answer unmistakably says; at least that of the strict reading.

    A number may leave its unit out: "3" and "3 seconds" answer each other.

    Raises:
        ValueError: the reference itself cannot be read as its kind.
    """
    strict = score_answer(answer, reference, kind)
    unwrapped = in_strict_form(answer, kind, question)
    if kind is AnswerKind.NUMBER and strict < 1.0:
        given, wanted = read_number(unwrapped), read_number(reference)
        same = given is not None and given.value == wanted.value and "" in (given.unit, wanted.unit)
        return float(same) or score_answer(unwrapped, reference, kind)
    return strict if unwrapped == answer else max(strict, score_answer(unwrapped, reference, kind))


def can_be_read(answer: str, kind: AnswerKind) -> bool:
    """Whether the strict reading finds anything in an answer."""
    read = {
        AnswerKind.LETTER: read_letter,
        AnswerKind.SPAN: read_span,
        AnswerKind.NUMBER: read_number,
        AnswerKind.SCORE: read_score,
        AnswerKind.OPEN: normalised,
    }[kind](answer)
    return read is not None and read != ""


def read_score(answer: str) -> tuple[int, ...] | None:
    """The points of each side, in order: "3-1", "3 : 1", "3 to 1"."""
    if len(answer) > _LONGEST_SCORE:
        return None
    text = trimmed(usual_characters(answer).lower())
    return tuple(map(int, re.findall(r"[0-9]+", text))) if _SCORE.fullmatch(text) else None


def _readable(read: Read | None, reference: str, kind: AnswerKind) -> Read:
    if read is None or read == "":
        raise ValueError(f"the reference answer {_shortened(reference)} is not {WANTED[kind]}")
    return read


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}…"
