"""Numbers are compared as numbers, with their units, and never by their digits alone."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.comparison import score_answer
from envs.answers.numbers import read_number
from envs.answers.reference import UnusableReference, read_reference
from rl.trajectory import AnswerKind


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("3", 3, ""),
        ("1.50", Fraction(3, 2), ""),
        (".5", Fraction(1, 2), ""),
        ("-5", -5, ""),
        ("\u22125", -5, ""),  # minus sign
        ("–5", -5, ""),  # en dash, as typesetters do
        ("- 5", -5, ""),
        ("+5", 5, ""),
        ("1,000", 1000, ""),
        ("1,234,567.8", Fraction(12345678, 10), ""),
        ("1e3", 1000, ""),
        ("1.5E-2", Fraction(15, 1000), ""),
        ("1/2", Fraction(1, 2), ""),
        ("2½", Fraction(5, 2), ""),
        ("2 1/2", Fraction(5, 2), ""),
        ("25 %", Fraction(1, 4), ""),
        ("25 percent", Fraction(1, 4), ""),
        ("$1.50", Fraction(3, 2), "$"),
        ("-$5", -5, "$"),
        ("5 dollars", 5, "$"),
        ("€5", 5, "€"),
        ("3 sec.", 3, "s"),
        ("3 Seconds", 3, "s"),
        ("-5 °C", -5, "°C"),
        ("5'", 5, "ft"),
        ('5"', 5, "in"),
        ("３．５", Fraction(7, 2), ""),  # full width
        ("٣٫٥", Fraction(7, 2), ""),  # Arabic
        ("(3).", 3, ""),
        ("**3**", 3, ""),
        ('"3"', 3, ""),
    ],
)
def test_a_number_is_its_value_and_its_unit(text, value, unit):
    found = read_number(text)
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize(
    "text",
    [
        *("", "three", "3 apples", "about 3", "~3", "<3", "±3", "3 or 4", "3-1", "10:30", "1.2.3", "192.168.0.1"),
        *("1.000,5", "1,5", "1,00", "0,500", "12,34,567", "1 000"),  # another country's number, or a list
        *("5²", "1①", "10₂", "5G", "3/0", "1e999", "--3", "+-3", "$3 %", "3x", "9" * 200),
    ],
)
def test_what_has_no_reading_or_several_is_no_number(text):
    assert read_number(text) is None


SAME = (
    *(("1.5", "1.50"), ("1.0", "1"), ("1", "1.0"), ("1000", "1,000"), ("1e3", "1000"), ("0.5", "1/2"), ("-5", "−5")),
    *(
        ("25 %", "25%"),
        ("25 %", "25 percent"),
        ("25 %", "0.25"),
        ("$1.50", "$1.5"),
        ("3 s", "3 seconds"),
        ("3", "(3)."),
    ),
    *(("C++", "c++"), ("C#", "c#"), ("10:30", "10:30."), ("5'10\"", "5'10\""), ("R&B", "r&b"), ("O−", "o-")),
    *(("5 km/h", "5 kph"), ("5²", "5^2"), ("½", "0.5"), ("3 people", "3.0 people"), ("1,000 people", "1000 people")),
    *(("3.5", "٣٫٥"), ("It is 3 - 5 m", "It is 3–5 m"), ("A*", "A*"), ("+5", "5"), ("1.000,5", "1.000,5")),
)
OTHER = (
    *(("1.5", "15"), ("15", "1.5"), ("5", "-5"), ("-5", "5"), ("5", "−5"), ("5", "- 5"), ("$1.50", "150"), ("$5", "5")),
    *(("25 %", "25"), ("25", "25 %"), ("0.25", "25"), ("1/2", "12"), ("10:30", "1030"), ("10:30", "10.30")),
    *(("C++", "C"), ("C", "C++"), ("C#", "C"), ("A*", "A"), ("A-", "A"), ("O-", "O+"), ("O-", "O"), ("R&B", "RB")),
    *(("1,000", "1.000"), ("1.000,5", "10005"), ("1.000,5", "1000.5"), ("1,5", "15"), ("1,5", "1.5"), ("1.2.3", "123")),
    *(("5 m/s", "5 ms"), ("5 m", "5 km"), ("3 s", "3"), ("5'", '5"'), ("5'10", "510"), ("€5", "$5"), ("-5 °C", "5 °C")),
    *(("5²", "52"), ("2½", "21/2"), ("10₂", "102"), ("10⁻⁵", "105"), ("1①", "11"), ("m²", "m2"), ("x=-5", "x=5")),
    *(("3 apples", "3"), ("about 3", "3"), ("~5", "5"), ("<5", "5"), (">5", "<5"), ("±5", "5"), ("5!=6", "5=6")),
    *(("007", "7"), ("3-1", "31"), ("1990-1995", "19901995"), ("192.168.0.1", "19216801"), ("1e3", "13"), ("1e3", "1")),
    *(("-(5)", "5"), ("3 + 5", "3 5"), ("3 -5", "3 5"), ("F-16", "F 16"), ("v1.0", "v10"), ("#5", "5"), ("5+", "5")),
    *(
        ("Vitamin A", "Vitamin"),
        ("A, C", "C"),
        ("A and C", "and C"),
        ("1.0000000000000000000000001", "1"),
        ("a_b", "ab"),
        ("50 % off", "50 off"),
    ),
)


def score(answer, reference):
    """Against the reference of a row that says no kind."""
    reference, kind = read_reference(reference)
    return score_answer(answer, reference, kind)


@pytest.mark.parametrize(("reference", "answer"), SAME)
def test_the_same_thing_in_other_signs_is_right(reference, answer):
    assert score(answer, reference) == 1.0


@pytest.mark.parametrize(("reference", "answer"), OTHER)
def test_another_thing_is_wrong(reference, answer):
    try:
        assert score(answer, reference) == 0.0
    except UnusableReference as refusal:  # "3-1" says no kind
        assert "reversed" in str(refusal)


WHOLE, PART = st.integers(-(10**6), 10**6), st.integers(0, 999)
SPELLED = (
    lambda whole, part: f"{whole}.{part:03d}",
    lambda whole, part: f"{whole:,}.{part:03d}",
    lambda whole, part: f"{whole:+,}.{part:03d}0",
    lambda whole, part: f"{whole}.{part:03d}".replace("-", "−"),
    lambda whole, part: f"{whole * 1000 + (part if whole >= 0 else -part)}e-3",
    lambda whole, part: f"{whole * 1000 + (part if whole >= 0 else -part)}/1000",
    lambda whole, part: f"{whole} {part}/1000",
    lambda whole, part: f"**{whole}.{part:03d}**",
    lambda whole, part: f"({whole}.{part:03d}).",
    lambda whole, part: f"{whole}.{part:03d} people",
    lambda whole, part: f"There are {whole:,}.{part:03d} of them",
)
NUMBERS = st.tuples(WHOLE, PART)


def value(number):
    whole, part = number
    return Fraction(abs(whole) * 1000 + part, 1000) * (1 if whole >= 0 else -1)


@given(NUMBERS, NUMBERS, st.sampled_from(range(len(SPELLED))), st.sampled_from(range(len(SPELLED))))
def test_no_two_unequal_numbers_score_1_however_they_are_written(one, other, spelled, respelled):
    one_text, other_text = SPELLED[spelled](*one), SPELLED[respelled](*other)

    right = score(other_text, one_text)

    assert right == 0.0 or value(one) == value(other)


@given(NUMBERS, st.sampled_from(range(8)), st.sampled_from(range(8)))
def test_equal_numbers_score_1_however_they_are_written(number, spelled, respelled):
    assert score(SPELLED[spelled](*number), SPELLED[respelled](*number)) == 1.0


NEAR = st.text("0123456789.,-+/%:$e² ", min_size=1, max_size=6)


@given(NEAR, NEAR)
def test_texts_of_digits_and_marks_that_score_1_are_the_same_or_equal_numbers(reference, answer):
    try:
        right = score(answer, reference)
    except UnusableReference:
        return
    if not any(character.isdigit() for character in reference + answer):
        return  # ":+" and "+" are a text without and with punctuation
    one, other = read_number(reference), read_number(answer)
    digits = [[c for c in text if c.isdigit() or c in "-/%:$e²"] for text in (reference, answer)]
    if right == 1.0 and None not in (one, other):
        assert one == other
    elif right == 1.0 and read_reference(reference)[1] is AnswerKind.OPEN:
        assert "".join(digits[0]).strip("0") == "".join(digits[1]).strip("0") or "." in reference + answer
