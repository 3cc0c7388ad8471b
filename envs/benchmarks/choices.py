"""Multiple-choice questions: the options, their letters, and how they are asked."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.answers.characters import usual_characters
from envs.answers.lenient import read_letter_leniently
from envs.answers.letters import read_letter
from envs.benchmarks.benchmark import Example
from envs.benchmarks.reading import single_evidence
from envs.data.formats import make_task
from envs.data.rows import UnusableRow, shortened, text_at
from envs.data.videos import video_file
from rl.trajectory import AnswerKind, TimeSpan

LETTERS = string.ascii_uppercase
NO_OPTION = "none of the options"  # the reference where the authors' answer is no option: nobody is right
_INSTRUCTION = "Answer with the letter of the one right option."
_LABEL = re.compile(  # "A. ", "(A) ", "a) ", "[A] ", "Ａ．", "A、", "**A.** ", "Option A: "
    r"\s*+(?:option\s++)?\**+[(\[（【]?+([A-ZＡ-Ｚ])\**+(?:[.:．：。、]|[)\]）】][.:]?+|\s+[-–—](?=\s))\**+\s*+",
    re.IGNORECASE,
)
_WRITTEN = re.compile(r"(?:^|(?<=\s))\(([A-Z])\)|^[ \t]*+([A-Z])[.):]", re.MULTILINE)


def choice_example(
    task_id: str,
    video: str,
    root: Path,
    folders: tuple[str, ...],
    question: str,
    letter: str | None,
    *,
    options: Sequence[str] = (),
    windows: Sequence[TimeSpan] = (),
    group: str = "",
) -> Example:
    """A question whose answer is a letter.

    Args:
        question: as the authors ask it; with its options, if they have put them there.
        letter: the right option; None: the authors' answer is none of them. The question counts, and nobody is right.
        options: shown below the question, one per line.
    """
    asked = f"<video>\n{with_options(question, options)}\n{_INSTRUCTION}"
    path, evidence = video_file(video, root, folders), single_evidence(windows)
    answer, kind = (NO_OPTION, AnswerKind.OPEN) if letter is None else (letter, AnswerKind.LETTER)
    task = make_task(task_id, path, root, asked, answer, evidence, None, kind=kind)
    return Example(task, tuple(windows), group, tuple(options), answerable=letter is not None)


def with_options(question: str, options: Sequence[str]) -> str:
    """The question, then one option per line: "A. text"; labels that the options carry already are not doubled."""
    plain = without_labels(options)
    lines = (f"{letter}. {option.strip()}".rstrip() for letter, option in zip(LETTERS, plain, strict=False))
    return "\n".join((question.strip(), *lines))


def options_at(row: Mapping[str, object], key: str) -> tuple[str, ...]:
    """The options in order, as they stand; a blank one is an option like any other."""
    options = row.get(key)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise UnusableRow(f"{key!r} must be a list of 2 to {len(LETTERS)} options, got {shortened(options)}")
    return tuple(text_or_blank({key: option}, key) for option in options)


def text_or_blank(row: Mapping[str, object], key: str) -> str:
    """A text that may be blank, as options and their questions are here and there; authors also write numbers."""
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and not value.strip() else text_at(row, key)


def without_labels(options: Sequence[str]) -> tuple[str, ...]:
    """The options without the letters that the authors wrote before them ("A. text"), where each has its own."""
    labels = [_LABEL.match(option) for option in options]
    if not all(label and read_letter(usual_characters(label[1])) == LETTERS[i] for i, label in enumerate(labels)):
        return tuple(options)
    plain = tuple(option[label.end() :] for option, label in zip(options, labels, strict=True))
    return plain if any(plain) else tuple(options)  # "A.", "B.": the letters are what is to be chosen


def letter_of_text(answer: str, options: Sequence[str], *, last: bool = False) -> str | None:
    """The letter of the option that is the answer's text, where authors give the text; None if no option is.

    Of options that share it the first one's letter is right, and only that one's; the last one's where the authors' own
    script takes the last. A text is the option that it equals to the last blank, if there is one; then the one that it
    equals without the label.
    """
    same = [letter for letter, option in zip(LETTERS, options, strict=False) if option == answer]
    alike = [letter for letter, option in zip(LETTERS, options, strict=False) if option.strip() == answer.strip()]
    plain = zip(LETTERS, without_labels(options), strict=False)
    letters = same or alike or [letter for letter, option in plain if option.strip() == answer.strip()]
    return letters[-1 if last else 0] if letters else None


def letter_among(answer: str, letters: Sequence[str]) -> str:
    """The answer's letter, where authors give the letter, in whatever form; it has to name an option."""
    letter = read_letter_leniently(answer)
    if letter not in tuple(letters):  # a tuple: "AB" is in "ABC"
        raise UnusableRow(f"the answer {shortened(answer)} is none of {', '.join(letters)}")
    return letter


def written_letters(question: str) -> tuple[str, ...]:
    """The letters of the options that the authors wrote into the question: "(A) …", or "A. …" where a line begins.

    They are the longest run A, B, …: an "(A)" may also be part of the question, or of an option.
    """
    letters = [bracketed or dotted for bracketed, dotted in _WRITTEN.findall(question)]
    options = max((_run_from(letters, i) for i, letter in enumerate(letters) if letter == "A"), key=len, default=())
    if len(options) < 2:
        raise UnusableRow(f"the question does not hold options A, B, …; its labels read {shortened(letters)}")
    return options


def _run_from(letters: Sequence[str], start: int) -> tuple[str, ...]:
    pairs = zip(letters[start : start + len(LETTERS)], LETTERS, strict=False)
    return tuple(itertools.takewhile(bool, (letter if letter == due else "" for letter, due in pairs)))
