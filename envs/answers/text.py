"""Open answers as they are compared: what never changes an answer is left out, what may change it stays.

"The red ball."  ->  "red ball"        "C++"     ->  "c++"
"It's 1,000.0 m" ->  "its 1000 m"      "− 5 °C"  ->  "-5°c"
"10:30"          ->  "10:30"           "Group A" ->  "group a"
"""

from __future__ import annotations

import re
import unicodedata

from envs.answers.characters import usual_characters

_CARRYING = frozenset("%#&*@\\§¶†‡‰‱※")  # punctuation to Unicode, but "C#", "A*", "R&B" and "25 %" are not "C", "A", …
_MONEY = "$€£¥₹₩₽¢"
_QUOTED = re.compile(r"""(?<!\w)"([^"]*)"(?!\w)|(?<!\w)'([^']*)'(?!\w)""")
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|~~)(?=[^\s*_~])([^*_~]*)(?<=\S)\1(?![\w*])")
_RANGE = re.compile(r"(?<=[0-9])\s++-\s++(?=\.?[0-9])")
_AFTER_NUMBER = re.compile(r"(?<=[0-9])\s++(?=[%°‰])")
_BEFORE_NUMBER = re.compile(rf"(?<=[{_MONEY}])\s++(?=\.?[0-9])")
_PIECE = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])-\s*+(?=[(\[]?[{_MONEY}]?\.?[0-9])|(?:^|(?<=[(\[]))\+(?=\.?[0-9]))"
    r"|(?P<number>(?<![\w.])\.[0-9]+|[0-9]+(?:[^\w\s]++[0-9]+)*)"  # with all marks inside it
    r"|(?P<mark>[^\w\s]|_)"
)
_NUMERAL = re.compile(
    r"(?:(?P<grouped>[1-9][0-9]{0,2}(?:,[0-9]{3})+)|(?P<plain>0|[1-9][0-9]*)?)(?:\.(?P<part>[0-9]+))?"
)
_NAMES = r"[^\w\s]?(?:[^\W\d_]|and|or|nor|vs|versus|to|is|was|are|of|for|with)\b"  # "A and B", "from A to B"
_ARTICLE = re.compile(rf"(?<![\w'])(?:an|the|a(?!\s++{_NAMES}))\s++(?=[^\w\s-]?\w)")


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles before a word, quotes, emphasis and superfluous blanks.

    Marks that carry meaning stay: signs, currencies, whatever stands between two digits, +, #, %, &, @ and the like.
    Numerals are written in one way (1,000.50 is 1000.5). Linear in the length of the text.
    """
    plain = without_wrapping(usual_characters(text).lower())
    joined = _BEFORE_NUMBER.sub("", _AFTER_NUMBER.sub("", _RANGE.sub("-", _ARTICLE.sub("", plain))))
    return " ".join(_PIECE.sub(_kept, joined).split())


def without_wrapping(text: str) -> str:
    """The text without pairs of quotes and of emphasis (**, _, …) around words."""
    return _EMPHASIS.sub(r"\2", _QUOTED.sub(lambda pair: pair[1] or pair[2] or "", text))


def trimmed(text: str) -> str:
    """The text without ordinary punctuation at its ends: "(3)." is "3", but "-5", ".5" and 5' stay."""
    start, end = 0, len(text)
    while start < end and (text[start].isspace() or (is_ordinary(text[start]) and not _begins_number(text, start))):
        start += 1
    while start < end and (text[end - 1].isspace() or (is_ordinary(text[end - 1]) and not _ends_measure(text, end))):
        end -= 1
    return text[start:end]


def is_ordinary(mark: str) -> bool:
    """Whether a character is punctuation of some script that does not change what a sentence says."""
    return unicodedata.category(mark).startswith("P") and mark not in _CARRYING


def _begins_number(text: str, at: int) -> bool:
    return text[at] == "-" or (text[at] == "." and text[at + 1 : at + 2].isdigit())


def _ends_measure(text: str, end: int) -> bool:
    """5' and 5" are feet and inches."""
    return text[end - 1] == "-" or (text[end - 1] in "'\"" and text[: end - 1][-1:].isdigit())


def _kept(piece: re.Match[str]) -> str:
    text, at = piece.string, piece.start()
    before = text[at - 1 : at]
    if piece["sign"]:
        return "-" if piece["sign"].startswith("-") else ""
    if piece["number"]:
        in_word = before.isalpha() or before == "_"
        return piece[0] if in_word else "-".join(map(_canonical, piece[0].split("-")))
    after = text[piece.end() : piece.end() + 1]
    if piece["mark"] in "_/":
        return piece["mark"] if before.isalnum() and after.isalnum() else ""
    if piece["mark"] == "." and not before.strip() and after.isalpha():  # .NET
        return "."
    if piece["mark"] == "-":  # F-16, 3-D, blood group O-
        joins = before.isalnum() and (before.isdigit() or after.isdigit() or not after.strip())
        return "-" if joins else ""
    if piece["mark"] in "'\"":
        return piece["mark"] if before.isdigit() and not after.isalpha() else ""
    return "" if is_ordinary(piece["mark"]) else piece["mark"]


def _canonical(numeral: str) -> str:
    """1,000.50 as 1000.5; what is no plain numeral (007, 1,5, 10:30) as it stands."""
    found = _NUMERAL.fullmatch(numeral)
    if found is None or not numeral:
        return numeral
    whole = (found["grouped"] or found["plain"] or "0").replace(",", "")
    part = (found["part"] or "").rstrip("0")
    return f"{whole}.{part}" if part else whole
