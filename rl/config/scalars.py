"""Numbers as a configuration writes them, and what is said of those that YAML 1.1 or a person reads otherwise.

YAML 1.1 makes 64 of 0100, 90 of 1:30 and 1000 of 1_000; YAML 1.2 does not. Where a key takes a number, such a spelling
is refused with the one that everybody reads alike; where it takes a text, every spelling is a text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.?inf(?:inity)?|\.?nan", re.IGNORECASE)
TRUE, FALSE = {"true", "yes", "on"}, {"false", "no", "off"}  # in any case
HUGE = 19  # digits of 2**63
NULL = {"", "~", "null"}  # in any case


def read_number(kind: type, text: str) -> int | float | None:
    """The number that a text is to everybody; None if it is none, or none of this kind (int or float).

    Raises:
        OverflowError: an integer that no key can use.
    """
    if kind is int and INTEGER.fullmatch(text):
        if len(text.lstrip("+-")) >= HUGE and not -(2**63) <= int(text[: 2 * HUGE]) < 2**63:
            raise OverflowError("must be below 2**63, got a huge integer")
        return int(text)
    if kind is float and NUMBER.fullmatch(text):
        return float(text)
    if kind is float and NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return None


def is_ambiguous(text: str) -> bool:
    """Whether YAML 1.1 takes it for a number that a person may not."""
    return any(pattern.fullmatch(text) for pattern, _, _ in AMBIGUOUS)


def advice(text: str, kind: type) -> str:
    """What to write for a number that was not understood, as "; a leading zero …: write 100"; empty without an idea.

    Args:
        kind: int or float, what the key takes.
    """
    for pattern, why, meant in (*AMBIGUOUS, *MISTAKEN):
        if pattern.fullmatch(text):
            try:
                number = meant(text)
            except ValueError:  # digits that are none, as in 0x_
                return ""
            fits = math.isfinite(number) and (kind is float or number == round(number))
            return f"; {why}{f': write {_spelled(number)}' if fits else ''}"
    return ""


def _spelled(number: float) -> str:
    return str(round(number)) if number == round(number) and abs(number) < 2**63 else repr(number)


def _decimal(text: str) -> float:
    plain = text.replace("_", "")
    return int(plain) if plain.lstrip("+-").isdigit() else float(plain)


def _of_base(base: int) -> Callable[[str], int]:
    return lambda text: int(text.replace("_", ""), base)


def _seconds(text: str) -> float:
    total: float = 0
    for part in text.lstrip("+-").replace("_", "").split(":"):
        total = 60 * total + _decimal(part)
    return -total if text.startswith("-") else total


Spelling = tuple[
    re.Pattern[str], str, Callable[[str], float]
]  # what it looks like, why it is refused, what it may mean
AMBIGUOUS: tuple[Spelling, ...] = (
    (re.compile(r"[-+]?0[0-9_]{1,30}"), "a leading zero makes a number octal in YAML 1.1", _decimal),
    (re.compile(r"[-+]?0[oO][0-7_]{1,30}"), "octal numbers are not read", _of_base(8)),
    (re.compile(r"[-+]?0[xX][0-9a-fA-F_]{1,30}"), "hexadecimal numbers are not read", _of_base(16)),
    (re.compile(r"[-+]?0[bB][01_]{1,60}"), "binary numbers are not read", _of_base(2)),
    (
        re.compile(r"[-+]?[0-9][0-9_]{0,12}(?::[0-5]?[0-9]){1,3}(?:\.[0-9]{0,12})?"),
        "hours and minutes are not read, times are in seconds",
        _seconds,
    ),
    (
        re.compile(r"[-+]?(?=.*_|0[0-9])[0-9][0-9_]{0,30}(?:\.[0-9_]{0,30})?(?:[eE][-+]?[0-9]{1,3})?"),
        "numbers are written without _ and leading zeros",
        _decimal,
    ),
)
MISTAKEN: tuple[Spelling, ...] = (
    (NUMBER, "an integer is written without point and exponent", float),
    (
        re.compile(r"[-+]?[0-9]{1,12}(?:\.[0-9]{0,12})? ?%"),
        "a share is a number from 0 to 1",
        lambda text: float(text[:-1]) / 100,
    ),
    (
        re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3}){1,4}"),
        "numbers are written without commas",
        lambda text: int(text.replace(",", "")),
    ),
    (
        re.compile(r"[-+]?[0-9]{1,12},[0-9]{1,12}"),
        "a decimal point is wanted, no comma",
        lambda text: float(text.replace(",", ".")),
    ),
)
