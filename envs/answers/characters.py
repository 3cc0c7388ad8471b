"""Characters in their usual form, so that full-width letters, dashes and digits of any script read alike.

Unlike NFKC, what stood apart stays apart: "5²" becomes "5^2" and not "52", "2½" becomes "2 1/2" and not "21/2".
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_MARKS = 30  # on one letter, as in Unicode's Stream-Safe Text: no script puts more
_USUAL = (
    dict.fromkeys("−➖", "-")  # dashes are found by their category
    | dict.fromkeys("‘’‚‛ʼ`´′＇", "'")
    | dict.fromkeys("“”„‟″＂", '"')
    | {"٫": ".", "٬": ",", "٪": "%", "⁄": "/", "∕": "/", "∶": ":"}
)
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))
_EXPONENT = re.compile(f"[{''.join(_RAISED)}]+")
_BASE = re.compile(f"(?<=[0-9])[{''.join(_LOWERED)}]+")
_SELECTORS = ("\ufe00", "\ufe0f")  # variation selectors, first and last


def usual_characters(text: str) -> str:
    """The text in the characters that ASCII has for them, where it has any; invisible characters are left out.

    Digits of any script become 0 to 9, minus signs and dashes "-", quotes ' and ", presentation forms what they
    present. Linear in the length of the text.
    """
    if text.isascii():
        return text.replace("`", "'")
    expanded = "".join(map(_expanded, _without_piles(text)))
    marked = _BASE.sub(lambda base: f"_{base[0]}", _EXPONENT.sub(lambda exponent: f"^{exponent[0]}", expanded))
    return unicodedata.normalize("NFC", marked.translate(str.maketrans(_RAISED | _LOWERED)))


@lru_cache(maxsize=4096)
def _expanded(character: str) -> str:
    """What a character stands for; a number in one character (⑤, ½) stands between blanks, away from other digits."""
    if character in _USUAL:
        return _USUAL[character]
    if character.isascii() or character in _RAISED or character in _LOWERED:
        return character
    category = unicodedata.category(character)
    if category == "Cf" or _SELECTORS[0] <= character <= _SELECTORS[1]:
        return ""
    if category == "Pd":
        return "-"
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    tag, *codes = unicodedata.decomposition(character).split() or [""]
    if not tag.startswith("<"):
        return character
    parts = "".join(_expanded(chr(int(code, 16))) for code in codes)
    return parts if unicodedata.numeric(character, None) is None else f" {parts} "


def _without_piles(text: str) -> str:
    """The text with at most `_MARKS` marks on a letter: they are put in order in time quadratic in their number."""
    kept, marks = [], 0
    for character in text:
        is_mark = unicodedata.combining(unicodedata.normalize("NFKD", character)[0])
        marks = marks + 1 if is_mark else 0
        if marks <= _MARKS:
            kept.append(character)
    return "".join(kept)
