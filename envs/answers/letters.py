"""Letters of options: in answers, and in questions that hold their options."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z]))(?:[.):](?:\s.*)?|(?<=\))\s.*)?", re.DOTALL)
_OPTION = re.compile(r"^[ \t]*+\(?([A-Z])[.):][ \t]*+(\S.*)$", re.MULTILINE)


def read_letter(answer: str) -> str | None:
    """The option an answer chooses, upper case: "B", "b", "(B)", "B.", "B. text", "B) text", "(B) text", "B: text".

    A bare letter followed by words ("A dog runs") is no choice: it is an article as often as an option.
    """
    found = _LETTER.fullmatch(answer.strip())
    return (found[1] or found[2]).upper() if found else None


def written_options(question: str) -> Mapping[str, str]:
    """The options that stand on lines of their own in a question, "A. text" or "(A) text": letter -> text."""
    return {letter: text.strip() for letter, text in _OPTION.findall(question)}
