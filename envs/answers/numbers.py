"""Numbers in answers, compared by value and unit: "1.50" is "1.5", "25 %" is "0.25", "$5" is not "5".

What has several readings is none: "1.000,5" and "1,5" (a comma for the decimal point, or a list?) are left as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from envs.answers.characters import usual_characters
from envs.answers.text import trimmed, without_wrapping

LONGEST = 120  # characters of an answer that is a number
_MONEY = "$€£¥₹₩₽¢"
_NUMERAL = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{0,40})?|\.[0-9]{1,40}"
_NUMBER = re.compile(
    rf"(?P<sign>[-+])?\s*(?P<money>[{_MONEY}])?\s*(?P<late_sign>[-+])?"
    rf"(?:(?P<whole>[0-9]{{1,12}})\s+(?=[0-9]+\s?/))?"
    rf"(?P<top>{_NUMERAL})(?P<exponent>[eE][-+]?[0-9]{{1,2}})?"
    r"(?:\s?/\s?(?P<bottom>[0-9]{1,12}))?"
    r"\s*(?P<unit>[^0-9\s.,:/-](?:.*\S)?)?"
)
_PADDED = re.compile(r"(?<![0-9.,])0[0-9]")
_SPELLINGS = {  # a unit -> how it is written; a unit that is not here is no number's but a word of a text
    "s": "s sec secs second seconds 秒",
    "ms": "ms millisecond milliseconds",
    "min": "min mins minute minutes 分钟",
    "h": "h hr hrs hour hours 小时",
    "day": "day days",
    "%": "% percent pct",
    "‰": "‰ permille",
    "°": "° deg degree degrees",
    "°C": "°C °c celsius",
    "°F": "°F °f fahrenheit",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": 'in inch inches "',
    "ft": "ft foot feet '",
    "mi": "mi mile miles",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "km/h": "km/h kmh kph",
    "m/s": "m/s",
    "mph": "mph",
    "fps": "fps",
    "Hz": "Hz hz hertz",
    "$": "$ dollar dollars",
    "¢": "¢ cent cents",
    "€": "€ euro euros",
    "£": "£",
    "¥": "¥",
    "₹": "₹ rupee rupees",
    "₩": "₩ won",
    "₽": "₽ ruble rubles",
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_SHARES = {"%": 100, "‰": 1000}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and what it counts."""

    value: Fraction  # exact: 0.1 is a tenth
    unit: str  # one spelling of each; empty: none


def read_number(answer: str) -> Quantity | None:
    """The number an answer is: "3", "-5", "1,000", "1.5e3", "1/2", "2½", "$1.50", "25 %", "3 seconds"; None: none.

    A share is its value: 25 % is 0.25. Units are not converted: 60 s is not 1 min.
    """
    if len(answer) > LONGEST:
        return None
    found = _NUMBER.fullmatch(trimmed(without_wrapping(usual_characters(answer))))
    if found is None or (found["sign"] and found["late_sign"]) or (found["money"] and found["unit"]):
        return None
    value = _value(found)
    unit = found["money"] or (found["unit"] and _unit(found["unit"].rstrip(".")))
    if value is None or (unit is None and found["unit"]):
        return None
    if "-" in (found["sign"], found["late_sign"]):
        value = -value
    return Quantity(value / _SHARES[unit], "") if unit in _SHARES else Quantity(value, unit or "")


def looks_like_number(answer: str) -> bool:
    """Whether an answer is a number and nothing else: "007" and "05" may be names, and are compared as they stand."""
    return read_number(answer) is not None and not _PADDED.search(answer)


def _unit(spelling: str) -> str | None:
    """Symbols as they are written (5 g is not 5G), words in any case."""
    return _UNITS.get(spelling) or (_UNITS.get(spelling.lower()) if len(spelling) > 2 else None)


def _value(found: re.Match[str]) -> Fraction | None:
    whole, top, bottom = found["whole"], found["top"].replace(",", ""), found["bottom"]
    if bottom is None:
        return None if whole else Fraction(f"{top}{found['exponent'] or ''}")
    if found["exponent"] or not top.isdigit() or int(bottom) == 0 or (whole and int(top) >= int(bottom)):
        return None
    return Fraction(int(top), int(bottom)) + int(whole or 0)
