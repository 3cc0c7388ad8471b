"""From a row to typed values, and how messages show what they refuse."""

import math

import pytest

from envs.data.rows import RepeatedKey, UnusableRow, kind_of, number_at, shortened, text_at


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing"),
        (True, "true"),
        ([1, None, [True]], "[1, null, [true]]"),
        ({"a": None, "b": "x"}, "{'a': null, 'b': 'x'}"),
        ((), "[]"),
        (RepeatedKey("id"), "an object in which 'id' stands twice"),
        ([RepeatedKey("id")], "[an object in which 'id' stands twice]"),
        (math.nan, "nan"),
        (10**400, "a huge integer"),
        ([10**400], "[a huge integer]"),
        ("x" * 100, f"'{'x' * 59}…"),
        ("\ud800", r"'\ud800'"),
        (b"\x00", "binary data"),
        ([[[[[1]]]]], "[[[[…]]]]"),
    ],
)
def test_an_error_shows_a_value_as_a_file_would_and_no_more_of_it_than_helps(value, shown):
    assert shortened(value) == shown


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *[(None, "nothing"), ("x", "a text"), (True, "true or false"), (1, "a number"), (1.5, "a number")],
        *[([], "a list"), ({}, "an object"), (RepeatedKey("a"), "an object in which 'a' stands twice")],
    ],
)
def test_a_kind_is_named_in_words(value, kind):
    assert kind_of(value) == kind


def test_a_value_that_is_not_there_names_what_is():
    with pytest.raises(UnusableRow, match=r"'prompt' must be a text .*; the row has 'question', 'clip'"):
        text_at({"question": "x", "clip": "y"}, "prompt")


@pytest.mark.parametrize("value", [math.inf, math.nan, True, "3", [3], 10**400, RepeatedKey("a")])
def test_a_number_is_finite_and_no_text(value):
    with pytest.raises(UnusableRow, match="'fps' must be a finite number, got ") as refusal:
        number_at({"fps": value}, "fps")
    assert "RepeatedKey" not in str(refusal.value)
