"""Rows of JSON files: lines, arrays, values over several lines. Each row has the line where it starts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from envs.data.rows import DatasetError, RepeatedKey, UnusableRow, kind_of, shortened
from envs.data.text import LINE_END, beginning, beyond_utf8, text_lines, whole_text

_BLANKS = re.compile(r"[\s,\ufeff]*")


def json_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Rows of JSON lines, or of arrays and objects that stand one after the other, over as many lines as they like.

    A broken line costs that line; in values that go over several lines, what follows a broken one cannot be told apart:
    it is one bad row.

    Raises:
        DatasetError: the file cannot be read, holds no text, or is an array too large to be held in memory.
    """
    lines = text_lines(path)
    head = list(itertools.islice(lines, 2))
    if head and _goes_over_lines(path, head):
        yield from _values(path)
        return
    for line, text in itertools.chain(head, lines):
        yield line, text if isinstance(text, UnusableRow) else _decoded(text)


def json_object(path: Path) -> Mapping[str, object]:
    """A file that is one JSON object.

    Raises:
        DatasetError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such annotation file")
    text, broken = whole_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        reason = broken or f"{_problem(error)}{line}"
        raise DatasetError(f"{path} cannot be read as one JSON object: {reason}") from error
    if isinstance(value, RepeatedKey):
        raise DatasetError(f"{path}: the key {shortened(value.key)} stands twice in it, and only one can count")
    if not isinstance(value, dict):
        raise DatasetError(f"{path} must hold one JSON object, got {kind_of(value)}")
    if problem := beyond_utf8(text):
        raise DatasetError(f"{path}: {problem}")
    return value


def rows_within(value: object) -> str:
    """Where the rows of a file are that holds one object around all of them; empty if it looks like a row.

    A reader of rows cannot know that: it is asked once the only row of a file was refused.
    """
    if not isinstance(value, dict) or not value:
        return ""
    lists = [
        key for key, inner in value.items() if isinstance(inner, list) and all(isinstance(row, dict) for row in inner)
    ]
    if len(lists) == 1 and value[lists[0]]:
        place = f"its rows seem to be under the key {shortened(lists[0])}: jq -c '.[{json.dumps(lists[0])}][]'"
    elif len(value) > 1 and all(isinstance(inner, dict) for inner in value.values()):
        place = "its values seem to be the rows: jq -c '.[]'"
    else:
        return ""
    return f"the file is one object around all rows, expected is an array of rows or one row a line; {place}"


def _goes_over_lines(path: Path, head: list[tuple[int, str | UnusableRow]]) -> bool:
    """Whether a file is one array, or values over several lines, rather than one value a line."""
    (_, first), *others = head
    if isinstance(first, UnusableRow):
        return beginning(path)[:1] == "["  # an array on one line that is too long for a row, or in another encoding
    try:
        value = json.loads(first.removesuffix(","))
    except RecursionError:
        return False
    except ValueError:
        return first[0] == "[" or (first[0] == "{" and _first_value_goes_on(path))
    return isinstance(value, list) and (not others or (bool(value) and all(isinstance(row, dict) for row in value)))


def _first_value_goes_on(path: Path) -> bool:
    """Whether the lines from the first on are one value together, as pretty-printing writes it."""
    text = beginning(path)
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return LINE_END.search(text, 0, end) is not None


def _values(path: Path) -> Iterator[tuple[int, object]]:
    """Values one after the other, elements of arrays one by one, each with its line."""
    text, broken = whole_text(path)
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    line, counted, at, within = 1, 0, 0, False
    while True:
        at = _BLANKS.match(text, at).end()
        line, counted = line + sum(1 for _ in LINE_END.finditer(text, counted, at)), at
        found = text[at : at + 1]
        if not found and (broken or within):
            yield line, broken or UnusableRow("the array is not closed: the file breaks off here")
        if not found:
            return
        if found == ("]" if within else "["):
            at, within = at + 1, not within
            continue
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, broken or UnusableRow(f"not JSON from here on: {_problem(error)}")
            return
        yield line, beyond_utf8(text[at:end]) or value
        at = end


def _decoded(text: str) -> object:
    try:
        return json.loads(text.removesuffix(","), object_pairs_hook=_object)  # elements of an array without brackets
    except (ValueError, RecursionError) as error:
        return UnusableRow(f"not JSON: {_problem(error)}{_place(error)}")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object] | RepeatedKey:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    return RepeatedKey(next(key for key, _ in pairs if key in seen or seen.add(key)))


def _problem(error: Exception) -> str:
    """What is wrong with a text, without the parser's words for itself."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]}"
    return "nested too deep" if isinstance(error, RecursionError) else "a number of thousands of digits"


def _place(error: Exception) -> str:
    return f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
