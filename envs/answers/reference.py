"""References: which kind of answer one is, and whether a policy can earn its full reward.

What an annotation file holds as the answer is read by the grammar that reads answers, in the lenient way: "**B**" and
"<answer>B</answer>" are the letter B, "[1.0, 3.0]" is the window "1.00 - 3.00". What comes of it is written so that the
strict reading, which rewards use, scores it 1.
"""

from __future__ import annotations

import re

from envs.answers.clock import read_clock_span
from envs.answers.comparison import WANTED, score_answer
from envs.answers.lenient import LONGEST, in_strict_form, only_letter, without_wrappings
from envs.answers.letters import read_letter
from envs.answers.numbers import looks_like_number
from envs.answers.windows import read_edges, spell_span
from rl.trajectory import AnswerKind, TimeSpan

_TAGGED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_UNWRITABLE = re.compile(r"</?(?:answer|think|span|fps|video)>|<\|[a-z_]+\|>")


class UnusableReference(ValueError):
    """No policy can earn the full reward of this reference; the message says why, and what to write instead."""


def read_reference(answer: str, kind: AnswerKind | None = None, question: str = "") -> tuple[str, AnswerKind]:
    """The reference as rewards read it, and its kind.

    Args:
        kind: where the row says it, nothing is guessed; None: it is judged by what the answer looks like.
        question: with its options, for a letter that is written before its option's text.
    Raises:
        UnusableReference: it cannot be read as its kind, or scores less than 1 against itself.
    """
    tagged = _TAGGED.fullmatch(answer)
    text = (tagged[1] if tagged else answer).strip()
    if (found := _UNWRITABLE.search(text)) is not None:
        raise UnusableReference(f"the answer holds {found[0]}, which a policy cannot write within an answer")
    if kind is None:
        kind, text = _guessed(text)
    elif kind is not AnswerKind.OPEN:
        text = in_strict_form(text, kind, question)
    try:
        own_score = score_answer(text, text, kind)
    except ValueError as error:
        raise UnusableReference(_reason(text, kind)) from error
    if own_score < 1.0:
        raise UnusableReference(f"the answer {_shortened(text)} scores {own_score:g} against itself as {kind.value}")
    return text, kind


def _guessed(text: str) -> tuple[AnswerKind, str]:
    """The kind that an answer looks like, and the answer as strict readers of that kind take it."""
    plain = text if len(text) > LONGEST else without_wrappings(text)
    if (window := _window(text, plain)) is not None:
        return AnswerKind.SPAN, window
    for form in (text, plain):
        if read_letter(form) is not None:
            return AnswerKind.LETTER, form
        if looks_like_number(form):
            return AnswerKind.NUMBER, form
    letter = only_letter(text) if len(text) <= LONGEST else None
    if letter is not None:
        return AnswerKind.LETTER, letter
    return AnswerKind.OPEN, plain if "\\boxed" in text else text


def _window(text: str, plain: str) -> str | None:
    """The window that an answer is, forward in time."""
    edges = read_edges(text)
    read_strictly = edges is not None
    if edges is None and len(text) <= LONGEST:
        edges = read_clock_span(plain)
    if edges is None:
        return None
    _require_forward(edges, text)
    return text if read_strictly else spell_span(edges)


def _require_forward(edges: TimeSpan, text: str) -> None:
    if edges.end_s <= edges.start_s:
        raise UnusableReference(
            f"the answer is reversed or empty as a window: {_shortened(text)}; if it is none, say so in the row: "
            f'"answer_kind": "{AnswerKind.SCORE}" or "{AnswerKind.OPEN}"'
        )


def _reason(text: str, kind: AnswerKind) -> str:
    if kind is AnswerKind.OPEN:
        return f"the answer {_shortened(text)} says nothing"
    return f"the answer {_shortened(text)} is not {WANTED[kind]}"


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}…"
