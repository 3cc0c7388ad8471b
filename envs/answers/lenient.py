"""The lenient reading: what an answer unmistakably says, in whatever form evaluators of stock models read.

`in_strict_form` writes an answer as the strict readers know it, or leaves it as it is: whoever wants to read leniently
reads what it returns in the strict way.

    "**B**", "Answer: B", "\\boxed{B}", "B a red ball", "The answer is (B)."     ->  "B"
    "[3.0, 8.5]", "00:03 to 00:08.5", "It happens from 3 to 8.5 seconds."        ->  "3.00 - 8.50"
    "A or B", "not B", "A B C D", "As I said"                                    ->  as they are
"""

from __future__ import annotations

import re

from envs.answers.characters import usual_characters
from envs.answers.clock import windows_in
from envs.answers.letters import read_letter, written_options
from envs.answers.numbers import read_number
from envs.answers.text import normalised, without_wrapping
from envs.answers.windows import read_span, spell_span
from rl.trajectory import AnswerKind, TimeSpan

LONGEST = 4_000  # characters: what is said at greater length is not unmistakable, and is not searched

_NOUN = (
    r"(?:answer|ans\.?|option|choice|letter|respuesta|réponse|resposta|risposta|antwort|ответ|答案|选项|答え|回答|정답)"
)
_IS = r"(?:\s+(?:is|must\s+be|should\s+be)\b|\s*(?:[:=→]|->|是|为)|\s+-(?=\s))+"
_PREFIX = re.compile(
    rf"(?:(?:so|thus|therefore|hence),?\s+)?(?:(?:the|my)\s+)?(?:(?:correct|right|best|final)\s+|正确)*{_NOUN}{_IS}\s*",
    re.IGNORECASE,
)
_STATED = re.compile(
    rf"(?:{_NOUN}{_IS}|\bit(?:\s+is|'s)\s|\b(?:choose|pick|select)\s)\s*(?:{_NOUN}\s*)?"
    r"(?P<mark>[(\[{<]?)(?P<letter>[A-Za-z])\b(?!')",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|OPTION|CHOICE|ANSWER)\s+(?P<mark>[(\[{<]?)(?P<letter>[A-Z])\b")
_ONLY = re.compile(
    r"(?:(?:option|choice|answer|ans\.?)\s+)?[(\[{<【〈《「]?\s?([A-Za-z])\s?[)\]}>】〉》」]?", re.IGNORECASE
)
_LATEX = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_MATHS = re.compile(r"(?:\$\$?|\\[(\[])([^$]*?)(?:\$\$?|\\[)\]])")
_STOPS = ".,;!。，।॥۔։።។။…"
_BRACKETED = re.compile(r"[\[{<【〈《「]\s?([A-Za-z])\s?[\]}>】〉》」](?:\s.*)?", re.DOTALL)
_LONE = re.compile(r"\(?([A-Z])\)?")
_BARE = re.compile(r"([A-Z])(?:\s+(?:-\s+)?|\s?[、,;]\s*)(\S.*)", re.DOTALL)
_MARKUP = re.compile(r"\*\*|__|`|</?(?:b|strong|i|em)>")
_MATHS_LETTER = re.compile(r"[$]\s?(\(?[A-Za-z]\)?)\s?[$]")
_MORE = re.compile(
    r"[)\]}>\s]*(?:(?:or|and|nor|vs|versus)\b|[&/+|]|,\s*[A-Z]\b|\?)|(?:\s*[A-Z]\b[\s,/&]*)+$", re.IGNORECASE
)
_DENIED = re.compile(r"\b(?:not|never|neither|nor|wrong|incorrect|false|except|cannot)\b|n't\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[)\]}>\s]*(?:(?:is|was)\s+|(?=isn't|wasn't))(?:not|wrong|incorrect|false|\w+n't)\b", re.IGNORECASE
)
_ENDED = re.compile(
    r"[)\]}>]*\s*(?:$|[.,;:!。，；：！\n]|\(|-\s|\b(?:because|since|as|which|option|choice)\b)", re.IGNORECASE
)
_ARTICLES = "AI"  # letters that are words of English too
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SPECIAL = re.compile(r"<\|[a-z_]+\|>")


def in_strict_form(answer: str, kind: AnswerKind, question: str = "") -> str:
    """The answer as the strict readers of its kind read it, if it is unmistakable; else the answer as it is.

    Args:
        question: with its options, one a line, where there are any: "A dog" is option A only where that is a dog.
    """
    if len(answer) > LONGEST:
        return answer
    match kind:
        case AnswerKind.LETTER:
            return answer if read_letter(answer) else read_letter_leniently(answer, question) or answer
        case AnswerKind.SPAN:
            window = None if read_span(answer) else _single_window(answer)
            return answer if window is None else spell_span(window)
        case AnswerKind.NUMBER:
            return answer if read_number(answer) else _bare_number(answer)
        case AnswerKind.SCORE | AnswerKind.OPEN:
            return without_wrappings(answer) or answer


def read_letter_leniently(answer: str, question: str = "") -> str | None:
    """The one option that an answer unmistakably chooses, upper case; all that `read_letter` reads is among them."""
    letter = read_letter(answer)
    if letter is not None or len(answer) > LONGEST:
        return letter
    text = without_wrappings(answer)
    stated = _stated_letter(_MATHS_LETTER.sub(r"\1", _without_latex(_plain(answer))))
    if len(written_options(text)) > 1 or stated is None:  # it tells the options again, or says two things
        return None
    bracketed = _BRACKETED.fullmatch(text)
    letter = bracketed[1].upper() if bracketed else only_letter(answer) or read_letter(text)
    return letter or stated or _lone_letter(text) or _letter_before_text(text, question)


def only_letter(answer: str) -> str | None:
    """The letter of an answer that holds nothing else but what is put around answers: "**B**", "[B]", "Option B"."""
    found = _ONLY.fullmatch(without_wrappings(answer))
    return found[1].upper() if found else None


def without_wrappings(answer: str) -> str:
    """The answer without what is put around answers: emphasis, LaTeX, "The answer is", quotes, a full stop."""
    text = _plain(answer)
    for _ in range(6):  # "The answer is: **$\\boxed{B}$**." takes three
        before = text
        text = _without_latex(text)
        if (maths := _MATHS.fullmatch(text)) is not None:
            text = maths[1]
        if (prefix := _PREFIX.match(text)) is not None and prefix.end() < len(text):
            text = text[prefix.end() :]
        text = without_wrapping(text).strip()
        text = text.rstrip(_STOPS).rstrip() or text
        if text == before:
            break
    return text


def final_text(text: str) -> str:
    """What a policy says in the end where it writes no <answer>…</answer>: all after its thought and its last look."""
    said = _SPECIAL.sub("", text).partition("</answer>")[0]
    for mark in ("</think>", "</fps>", "<video>", "<answer>"):
        said = said.rpartition(mark)[2]
    return "" if "<think>" in said else said.strip()


def _plain(answer: str) -> str:
    return usual_characters(_MARKUP.sub("", answer)).strip()


def _without_latex(text: str) -> str:
    """\\boxed{\\text{B}} is B."""
    return _LATEX.sub(r"\1", _LATEX.sub(r"\1", text))


def _stated_letter(text: str) -> str | None:
    """The letter of "the answer is B" or "Option B"; "" where none is stated, None where it is not the only one."""
    stated: set[str] = set()
    for pattern in (_STATED, _NAMED):
        for found in pattern.finditer(text):
            letter, rest = found["letter"].upper(), text[found.end() :]
            sentence = re.split(r"[.!?\n]", text[: found.start()])[-1]
            if _MORE.match(rest) or _TAKEN_BACK.match(rest) or _DENIED.search(sentence):
                return None
            after_noun = pattern is _NAMED and not found[0].lower().startswith("answer")
            is_word = not after_noun and not found["mark"] and not _ENDED.match(rest)  # "it is C major"
            stated |= set() if is_word else {letter}
    return (stated or {""}).pop() if len(stated) < 2 else None


def _lone_letter(text: str) -> str | None:
    """The letter that has a line of its own, the first or the last one."""
    lines = [line.strip().rstrip(_STOPS) for line in text.splitlines() if line.strip()]
    lone = {found[1] for line in lines if (found := _LONE.fullmatch(line))}
    at_an_end = any(map(_LONE.fullmatch, lines[:1] + lines[-1:]))
    return lone.pop() if len(lone) == 1 and at_an_end else None


def _letter_before_text(text: str, question: str) -> str | None:
    """The letter of "B a red ball"; A and I are words as well, and need an option that reads so."""
    found = _BARE.fullmatch(text)
    if found is None:
        return None
    letter, rest, options = found[1], found[2], written_options(question)
    if letter in options and normalised(options[letter]) == normalised(rest):
        whole = [other for other, option in options.items() if normalised(option) == normalised(text)]
        return letter if set(whole) <= {letter} else None
    if letter in _ARTICLES or (options and letter not in options) or _MORE.match(rest) or _DENIED.search(rest):
        return None
    return letter


def _single_window(answer: str) -> TimeSpan | None:
    text = _plain(answer)
    found = windows_in(text)
    forward = [window for window in found if window.end_s > window.start_s]
    return forward[0] if len(found) == len(forward) == 1 and not _DENIED.search(text) else None


def _bare_number(answer: str) -> str:
    text = without_wrappings(answer)
    if text.lower() in _WORDS:
        return str(_WORDS.index(text.lower()))
    return text if read_number(text) else answer
