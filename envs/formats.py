"""One row of an annotation file, in any of the known formats, to a task or a supervised trace.

- `dm_rl`: JSON lines with `prompt` (starts with `<video>`), `video`, `answer`, and optionally `fps`, `gt_span_start`,
  `gt_span_end`.
- `dm_cot`: a JSON array (ShareGPT) with `video` and `conversations`; the reply holds `<video>` where frames go in.
- `charades_sta`: text lines `VIDEO start end##sentence.`; a span to be found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from envs.retrieval import RetrievalRules, parse_call
from rl.trajectory import AnswerKind, RetrievalCall, TimeSpan, VideoTask

_LETTER = re.compile(r"(?:\([A-Za-z]\)|[A-Z])(?:[.):](?:\s.*)?|(?<=\))\s.*)?", re.DOTALL)
_SECONDS = r"([0-9]{1,9}(?:\.[0-9]{0,9})?)\s*(?:s|seconds)?"
_SPAN = re.compile(rf"{_SECONDS}\s*-\s*{_SECONDS}")
_ANSWER = re.compile(r"<answer>([^<]*)</answer>\s*\Z")
_VIDEO_PLACEHOLDER, _CALL_END = "<video>", "</fps>"
_CHARADES_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")
_CHARADES_QUESTION = (
    "<video>\nGive you a textual query: {}\nWhen does the described content occur in the video?\n"
    "Please return the timestamp in seconds."
)
_AS_WRITTEN = RetrievalRules(min_window_s=0.01, max_fps=1e6)  # a trace's call before the clip is known
_ANY_LENGTH_S = 1e7


class UnusableRow(ValueError):
    """One row cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class RetrievalTrace:
    """A supervised episode: each reply but the last ends in a call, after which the environment inserts frames."""

    task: VideoTask
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a file is cut into rows, and what a row becomes."""

    rows: Callable[[Path], Iterator[tuple[int, object]]]  # (line from 1, value or UnusableRow)
    task: Callable[[object, Path, str], VideoTask]  # value, video root, task id
    trace: Callable[[object, Path, str], RetrievalTrace] | None = None


def confine(path: str, root: Path) -> str:
    """The absolute path of an existing file under `root`, links resolved.

    Raises:
        UnusableRow: there is no such file, or it lies elsewhere.
    """
    home = root.resolve()
    try:
        resolved = (home / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # missing, NUL in the name, a circle of links
        raise UnusableRow(f"video {path!r} cannot be found under {root}") from error
    if not resolved.is_relative_to(home):
        raise UnusableRow(f"video {path!r} lies outside {root}")
    if not resolved.is_file():
        raise UnusableRow(f"video {path!r} is not a file")
    return str(resolved)


def answer_kind(answer: str) -> AnswerKind:
    """How an answer wants to be compared, judged by what it looks like."""
    if _SPAN.fullmatch(answer):
        return AnswerKind.SPAN
    return AnswerKind.LETTER if _LETTER.fullmatch(answer) else AnswerKind.OPEN


def span_of(answer: str) -> TimeSpan | None:
    """The window a SPAN answer names; None if it is none."""
    found = _SPAN.fullmatch(answer)
    return TimeSpan(float(found[1]), float(found[2])) if found else None


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    for line, text in _text_lines(path):
        yield line, text if isinstance(text, UnusableRow) else _decoded_json(text)


def _text_lines(path: Path) -> Iterator[tuple[int, str | UnusableRow]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                yield line, UnusableRow("not UTF-8 text")
                continue
            if text:
                yield line, text


def _decoded_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return UnusableRow(f"not JSON: {error}")


def _json_array(path: Path) -> Iterator[tuple[int, object]]:
    """Elements one by one, each with its line; what follows a broken one cannot be told apart: it is one bad row."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        yield 1, UnusableRow("not UTF-8 text")
        return
    decoder, blanks = json.JSONDecoder(), re.compile(r"[\s,]*")
    at, line = blanks.match(text).end(), 1
    if text[at : at + 1] != "[":
        yield 1, UnusableRow("not JSON: expected an array of rows")
        return
    counted, at = 0, at + 1
    while True:
        at = blanks.match(text, at).end()
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, UnusableRow(f"not JSON from here on: {error}")
            return
        yield line, value


def _dm_rl_task(row: object, root: Path, task_id: str) -> VideoTask:
    row = _mapping(row)
    start_s, end_s = _number(row, "gt_span_start"), _number(row, "gt_span_end")
    if (start_s is None) != (end_s is None):
        raise UnusableRow("gt_span_start and gt_span_end must be given together")
    evidence = None if start_s is None else _forward(TimeSpan(start_s, end_s), "the evidence span")
    return _task(
        task_id, _text(row, "video"), root, _text(row, "prompt"), _text(row, "answer"), evidence, _number(row, "fps")
    )


def _charades_task(row: object, root: Path, task_id: str) -> VideoTask:
    head, mark, sentence = row.partition("##")
    parts = head.split()
    if not mark or len(parts) != 3 or not sentence.strip():
        raise UnusableRow("expected 'VIDEO start end##sentence.'")
    numbers = {"start": _read_float(parts[1]), "end": _read_float(parts[2])}
    span = _forward(TimeSpan(_number(numbers, "start"), _number(numbers, "end")), "the span")
    answer = f"{span.start_s:.2f} - {span.end_s:.2f}"
    question = _CHARADES_QUESTION.format(sentence.strip())
    return _task(task_id, _with_suffix(parts[0], root), root, question, answer, span, None)


def _dm_cot_task(row: object, root: Path, task_id: str) -> VideoTask:
    return _dm_cot_trace(row, root, task_id).task


def _dm_cot_trace(row: object, root: Path, task_id: str) -> RetrievalTrace:
    row = _mapping(row)
    question, reply = _conversation(row)
    *looks, last = reply.split(_VIDEO_PLACEHOLDER)
    replies = (*(look.rstrip() for look in looks), last)
    if _CALL_END in last or not all(look.endswith(_CALL_END) and look.count(_CALL_END) == 1 for look in replies[:-1]):
        raise UnusableRow("frames must go in (<video>) exactly where a call ends (</fps>)")
    found = _ANSWER.search(last)
    if found is None:
        raise UnusableRow("the reply does not end in <answer>…</answer>")
    evidence, fps = _looked_at(replies)
    suggested = _number(row, "gemini_suggested_fps")
    video = _single_video(row)
    task = _task(task_id, video, root, question, found[1], evidence, fps if suggested is None else suggested)
    return RetrievalTrace(task, replies)


def _looked_at(replies: tuple[str, ...]) -> tuple[TimeSpan | None, float | None]:
    """Window and rate of the last call; every call has to be well-formed, or it would teach malformed ones."""
    span, fps = None, None
    for reply in replies[:-1]:
        call = parse_call(reply, duration_s=_ANY_LENGTH_S, native_fps=0.0, rules=_AS_WRITTEN)
        if not isinstance(call, RetrievalCall):
            raise UnusableRow(f"the call cannot be read: {call.reason}")
        span, fps = call.span, call.asked_fps
    return span, fps


def _task(
    task_id: str,
    video: str,
    root: Path,
    question: str,
    answer: str,
    evidence: TimeSpan | None,
    evidence_fps: float | None,
) -> VideoTask:
    answer = answer.strip()
    if not any(character.isalnum() for character in answer):
        raise UnusableRow(f"the answer {answer!r} says nothing")
    if not question.removeprefix(_VIDEO_PLACEHOLDER).strip():
        raise UnusableRow("there is no question")
    if evidence_fps is not None and evidence_fps <= 0:
        raise UnusableRow(f"the frame rate must be above 0, got {evidence_fps:g}")
    if (span := span_of(answer)) is not None:
        _forward(span, "the answer")
    return VideoTask(task_id, confine(video, root), question, answer, answer_kind(answer), evidence, evidence_fps)


def _forward(span: TimeSpan, name: str) -> TimeSpan:
    if span.start_s < 0:
        raise UnusableRow(f"{name} begins before the video: {span.start_s:g} - {span.end_s:g}")
    if span.end_s <= span.start_s:
        raise UnusableRow(f"{name} is reversed or empty: {span.start_s:g} - {span.end_s:g}")
    return span


def _mapping(row: object) -> Mapping[str, object]:
    if not isinstance(row, dict):
        raise UnusableRow(f"expected an object with keys, got {type(row).__name__}")
    return row


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UnusableRow(f"{key!r} must be a text that is not empty, got {_shortened(value)}")
    if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UnusableRow(f"{key!r} holds half a Unicode pair")
    return value


def _number(row: Mapping[str, object], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:  # NaN is not <= either
        raise UnusableRow(f"{key!r} must be a finite number, got {_shortened(value)}")
    return float(value)


def _conversation(row: Mapping[str, object]) -> tuple[str, str]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) != 2:
        raise UnusableRow("'conversations' must be one question and one reply")
    question, reply = map(_mapping, turns)
    if (question.get("from"), reply.get("from")) != ("human", "gpt"):
        raise UnusableRow("'conversations' must be from 'human', then from 'gpt'")
    return _text(question, "value"), _text(reply, "value")


def _single_video(row: Mapping[str, object]) -> str:
    video = row.get("video")
    if isinstance(video, list) and len(video) == 1:
        return _text({"video": video[0]}, "video")
    if isinstance(video, list):
        raise UnusableRow(f"exactly one video per row is supported, got {len(video)}")
    return _text(row, "video")


def _with_suffix(name: str, root: Path) -> str:
    candidates = (f"{name}{suffix}" for suffix in _CHARADES_SUFFIXES)
    return next((file for file in candidates if "\0" not in name and (root / file).is_file()), f"{name}.mp4")


def _read_float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _shortened(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**18:
        return "a huge integer"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


FORMATS: Mapping[str, RowFormat] = {
    "dm_rl": RowFormat(_json_lines, _dm_rl_task),
    "dm_cot": RowFormat(_json_array, _dm_cot_task, _dm_cot_trace),
    "charades_sta": RowFormat(_text_lines, _charades_task),
}
