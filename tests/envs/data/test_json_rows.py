"""Rows of JSON files, lines or arrays or neither, each with the line where it starts."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.data.json_rows import json_object, json_rows, rows_within
from envs.data.rows import DatasetError, RepeatedKey, UnusableRow

A, B = {"a": 1}, {"b": [2, {"c": "\u2028"}]}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"a": 1}\n{"b": [2, {"c": "\u2028"}]}\n', [(1, A), (2, B)]),
        ('{"a": 1}\r{"b": [2, {"c": "\u2028"}]}\r', [(1, A), (2, B)]),
        ('[{"a": 1}, {"b": [2, {"c": "\u2028"}]}]', [(1, A), (1, B)]),
        ('[\n {"a": 1},\r\n\r {"b": [2, {"c": "\\u2028"}]}\n]\n', [(2, A), (4, B)]),
        (json.dumps([A, B], indent=2), [(2, A), (5, B)]),
        (json.dumps(A, indent=2) + "\n" + json.dumps(B, indent=2), [(1, A), (4, B)]),  # as jq writes rows
        (json.dumps(A, indent=2), [(1, A)]),
        ('\n\n{"a": 1}', [(3, A)]),
        ('[{"a": 1}]\n[{"a": 1}]', [(1, A), (2, A)]),  # arrays joined
        ('[{"a": 1},]', [(1, A)]),
        ('{"a": 1},\n{"a": 1},\n', [(1, A), (2, A)]),  # an array without its brackets
        ('{"a": 1} {"a": 2}\n{"a": 1}', [(1, "not JSON: extra data at character 10"), (2, A)]),
        ("[]", []),
        ("[\n]", []),
        ("", []),
        ('[]\n{"a": 1}', [(1, []), (2, A)]),  # a line each
        ('[1, 2]\n{"a": 1}', [(1, [1, 2]), (2, A)]),
        ("[1, 2]", [(1, 1), (1, 2)]),
        ('{"a": 1}\n{"a": \n{"a": 1}', [(1, A), (2, "not JSON: expecting value at character 6"), (3, A)]),
        ('{"a": \n{"a": 1}', [(1, "not JSON: expecting value at character 6"), (2, A)]),
        ('[{"a": 1},\n{"a": ', [(1, A), (2, "not JSON from here on: expecting value")]),
        ('[{"a": 1}\n', [(1, A), (2, "the array is not closed: the file breaks off here")]),
        ('[{"a": 1}]\n?', [(1, A), (2, "not JSON from here on: expecting value")]),  # nothing is passed over in silence
        ("[" * 100_000 + '\n{"a": 1}', [(1, "not JSON: nested too deep"), (2, A)]),
        ('{"a": ' + "9" * 5_000 + "}", [(1, "not JSON: a number of thousands of digits")]),
        ("{'a': 1}", [(1, "not JSON: expecting property name enclosed in double quotes at character 2")]),
    ],
)
def test_rows_are_read_whatever_form_they_have(file, content, rows):
    expected = [(line, str(row) if isinstance(row, str) else row) for line, row in rows]
    for data in (content.encode(), gzip.compress(content.encode()), content.encode("utf-16")):
        got = [(line, str(row) if isinstance(row, UnusableRow) else row) for line, row in json_rows(file(data))]
        assert got == expected


def test_in_an_array_too_one_broken_byte_costs_one_row(file):
    path = file(b'[{"a": 1},\n{"a": "caf\xe9"},\n{"a": 1}]')
    (_, first), (line, broken), (_, last) = json_rows(path)
    assert (first, line, last) == (A, 2, A) and "not UTF-8 text" in str(broken)


def test_an_array_on_one_line_may_be_longer_than_a_row(file, monkeypatch):
    monkeypatch.setattr("envs.data.text.LONGEST_LINE", 20)
    assert list(json_rows(file(json.dumps([A] * 30)))) == [(1, A)] * 30


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)


@pytest.mark.parametrize("indent", [None, 1])
@settings(max_examples=30)
@given(rows=st.lists(st.dictionaries(TEXTS, TEXTS | st.none(), min_size=1, max_size=2), max_size=4))
def test_lines_and_array_hold_the_same_rows(rows, indent, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "same rows"
    for ascii_only in (True, False):
        written = [json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows]
        for content in ("\n".join(written), f"[{','.join(written)}]"):
            path.write_text(content, "utf-8", newline="")
            assert [row for _, row in json_rows(path)] == rows


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "expecting value"),
        ("[]", "must hold one JSON object, got a list"),
        ("7", "got a number"),
        ("null", "got nothing"),
        ("{", "expecting property name"),
        ('{"a": 1}\n{"a": 1}', r"extra data \(line 2\)"),
        ("[" * 100_000, "nested too deep"),
        (b"\xff", "cannot be read"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"id": 1, "id": 2}', "the key 'id' stands twice"),
    ],
)
def test_what_is_no_object_is_refused_with_the_file_and_in_plain_words(file, content, reason):
    with pytest.raises(DatasetError, match=rf"rows.*{reason}") as refusal:
        json_object(file(content))
    assert "RepeatedKey" not in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="none: no such annotation file"):
        json_object(tmp_path / "none")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"data": [A, A]}, "under the key 'data': jq -c '.[\"data\"][]'"),
        ({"version": 1, "data": [A], "info": {"year": 1}}, "under the key 'data'"),
        ({"v1": A, "v2": B}, "its values seem to be the rows: jq -c '.[]'"),
        ({"a": [A], "b": [A]}, ""),  # which of the two?
        ({"video": "a.mp4", "tags": ["x"]}, ""),
        ({}, ""),
        ([A], ""),
        (RepeatedKey("a"), ""),
    ],
)
def test_an_object_around_all_rows_is_told_from_a_row(value, place):
    assert place in rows_within(value) if place else rows_within(value) == ""
