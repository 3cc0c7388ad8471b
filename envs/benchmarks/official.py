"""Answers read as the authors' scripts read them, where that is another reading than ours; metrics `official/…`.

A script gets the body of the answer as its response, or what was said in the end where an answer has no tags. A
prediction that is missing is not in what it gets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.benchmarks.benchmark import Example, Prediction
from envs.benchmarks.metrics import group_names

PREFIX = "official/"
LEAD_INS = ("The best answer is", "The correct answer is", "The answer is", "The answer")


def response_of(prediction: Prediction) -> str:
    """What a script gets for a prediction."""
    return prediction.said or prediction.answer or ""


def first_letter(response: str, letters: str, lead_ins: Sequence[str] = LEAD_INS) -> str | None:
    """The first of these capitals anywhere in a response, once the lead-ins are taken out, one kind after another.

    "B", "(B)" and "The answer is B" are B; "b" is nothing; "Answer: B" is A, and so is "An apple".
    """
    for lead_in in lead_ins:
        response = response.replace(lead_in, "")
    found = re.search(f"[{letters}]", response)
    return found[0] if found else None


def first_character(response: str) -> str:
    """The first character, or that of what stands in the first brackets: "B. text" and "x (B) y" are B; "b" is b."""
    head = response.strip().partition(")")[0].strip()
    return (head.split("(")[1].strip() if "(" in head else head)[:1]


def before_bracket(response: str) -> str:
    """The character before the first closing bracket; the whole response if it has none: "B. text" is no letter."""
    at = response.find(")")
    return response if at < 0 else response[max(at - 1, 0) : at]


def chooses(example: Example, letter: str | None) -> float:
    """1 if a reading is the right option's letter, exactly."""
    return float(example.answerable and letter == example.task.answer)


def official_accuracy(example: Example, right: float) -> dict[str, float]:
    """The accuracy that a script prints, and that within each group of the example."""
    return {f"{PREFIX}accuracy": right} | {f"{PREFIX}accuracy/{name}": right for name in group_names(example)}
