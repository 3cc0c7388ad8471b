"""One row of an annotation file, in any of the known formats, to a task or a supervised trace.

- `dm_rl`: JSON (lines or an array) with `prompt` (starts with `<video>`), `video`, `answer`, and optionally `fps`,
  `gt_span_start`, `gt_span_end`, `evidence` (several windows), `answer_kind`; other columns are the task's `extra`.
- `dm_cot`: JSON (ShareGPT) with `video` and `conversations`; the reply holds `<video>` where frames go in.
- `charades_sta`: text lines `VIDEO start end##sentence.`; a span to be found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from envs.answers.comparison import score_answer
from envs.answers.reference import UnusableReference, read_reference
from envs.answers.windows import spell_span
from envs.data.json_rows import json_rows
from envs.data.rows import (
    UnusableRow,
    as_mapping,
    forward,
    number_at,
    number_of,
    shortened,
    text_at,
    unusable_windows,
    windows_at,
)
from envs.data.text import text_lines
from envs.data.videos import confine, video_file
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import parse_call
from envs.tools.zoom import TAGS as ZOOM_TAGS
from envs.tools.zoom import read_zoom
from rl.trajectory import AnswerKind, MalformedCall, RetrievalCall, TimeSpan, VideoTask

_DM_RL_COLUMNS = frozenset(
    ("prompt", "video", "answer", "fps", "gt_span_start", "gt_span_end", "evidence", "answer_kind")
)
_ANSWER = re.compile(r"<answer>([^<]*)</answer>\s*\Z")
_VIDEO_PLACEHOLDER = "<video>"
_CALL_END, _ZOOM_END = "</fps>", ZOOM_TAGS[-1]
_END = re.compile(r"</(?!think>|answer>)[a-z][a-z0-9_]*/?>\Z")  # of a call, of whichever tool
_MOMENT_QUESTION = (
    "<video>\nGive you a textual query: {}\nWhen does the described content occur in the video?\n"
    "Please return the timestamp in seconds."
)
_AS_WRITTEN = RetrievalRules(min_window_s=0.01, max_fps=1e6)  # a trace's call before the clip is known
_ANY_LENGTH_S = 1e7
NOTHING: Mapping[str, object] = MappingProxyType({})


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


def moment_question(sentence: str) -> str:
    """When does it happen? As the DynFrame release asks it."""
    return _MOMENT_QUESTION.format(sentence.strip())


def make_task(
    task_id: str,
    video: str,
    root: Path,
    question: str,
    answer: str,
    evidence: Sequence[TimeSpan],
    evidence_fps: float | None,
    *,
    kind: AnswerKind | None = None,
    extra: Mapping[str, object] = NOTHING,
) -> VideoTask:
    """A task whose values make sense, its video under `root`.

    Args:
        evidence: every annotated window, in order.
        kind: of the answer; None: judged by its look.
        extra: the row's other columns.
    Raises:
        UnusableRow: no policy can earn the full reward of this answer; there is no question, or no such video.
    """
    if not question.removeprefix(_VIDEO_PLACEHOLDER).strip():
        raise UnusableRow("there is no question")
    if evidence_fps is not None and evidence_fps <= 0:
        raise UnusableRow(f"the frame rate must be above 0, got {evidence_fps:g}")
    try:
        reference, kind = read_reference(answer, kind, question)
    except UnusableReference as error:
        raise UnusableRow(str(error)) from error
    first, *further = evidence or (None,)
    path = confine(video, root)
    return VideoTask(task_id, path, question, reference, kind, first, evidence_fps, tuple(further), dict(extra))


def _dm_rl_task(row: object, root: Path, task_id: str) -> VideoTask:
    row = as_mapping(row)
    return make_task(
        task_id,
        video_at(row),
        root,
        text_at(row, "prompt"),
        text_at(row, "answer"),
        _evidence(row),
        number_at(row, "fps"),
        kind=_answer_kind(row),
        extra={key: value for key, value in row.items() if key not in _DM_RL_COLUMNS},
    )


def _answer_kind(row: Mapping[str, object]) -> AnswerKind | None:
    """What the row says its answer is; None: it does not say."""
    value = row.get("answer_kind")
    if value is None:
        return None
    if not isinstance(value, str) or value not in tuple(AnswerKind):
        raise UnusableRow(f"'answer_kind' must be one of {', '.join(AnswerKind)}, got {shortened(value)}")
    return AnswerKind(value)


def _evidence(row: Mapping[str, object]) -> tuple[TimeSpan, ...]:
    """The annotated windows: `evidence`, or the one from `gt_span_start` to `gt_span_end`; none is fine.

    One unusable window of several does not cost the row; it is left out.
    """
    start_s, end_s = number_at(row, "gt_span_start"), number_at(row, "gt_span_end")
    if (start_s is None) != (end_s is None):
        raise UnusableRow("gt_span_start and gt_span_end must be given together")
    single = None if start_s is None else forward(TimeSpan(start_s, end_s), "the evidence span")
    if row.get("evidence") is None:
        return () if single is None else (single,)
    windows = windows_at(row, "evidence")
    if single is not None and single not in windows:
        raise UnusableRow(
            f"gt_span_start and gt_span_end ({single.start_s:g} - {single.end_s:g}) are not in 'evidence'"
        )
    return windows


def left_out_of(row: object) -> tuple[str, ...]:
    """What a row that became a task holds beside it that cannot be used: windows of evidence, with the reason."""
    return unusable_windows(row, "evidence") if isinstance(row, dict) else ()


def _charades_task(row: object, root: Path, task_id: str) -> VideoTask:
    head, mark, sentence = row.partition("##")
    parts = head.split()
    if not mark or len(parts) != 3 or not sentence.strip():
        raise UnusableRow("expected 'VIDEO start end##sentence.'")
    numbers = {"start": number_of(parts[1]), "end": number_of(parts[2])}
    span = forward(TimeSpan(number_at(numbers, "start"), number_at(numbers, "end")), "the span")
    video, question = video_file(parts[0], root), moment_question(sentence)
    return make_task(task_id, video, root, question, spell_span(span), (span,), None, kind=AnswerKind.SPAN)


def _dm_cot_task(row: object, root: Path, task_id: str) -> VideoTask:
    return _dm_cot_trace(row, root, task_id).task


def _dm_cot_trace(row: object, root: Path, task_id: str) -> RetrievalTrace:
    row = as_mapping(row)
    question, reply = _conversation(row)
    *looks, last = reply.split(_VIDEO_PLACEHOLDER)
    replies = (*(look.rstrip() for look in looks), last)
    if any(end in last for end in (_CALL_END, _ZOOM_END)) or not all(map(_is_one_call, replies[:-1])):
        raise UnusableRow("frames must go in (<video>) exactly where a call ends (</fps>, </box>)")
    found = _ANSWER.search(last)
    if found is None:
        raise UnusableRow("the reply does not end in <answer>…</answer>")
    window, fps = _looked_at(replies)
    evidence = () if window is None else (window,)
    suggested = number_at(row, "gemini_suggested_fps")
    video = video_at(row)
    task = make_task(task_id, video, root, question, found[1], evidence, fps if suggested is None else suggested)
    if last.count("<answer>") > 1 or score_answer(found[1].strip(), task.answer, task.answer_kind) < 1.0:
        raise UnusableRow(
            f"the reply teaches a form of the answer that rewards do not read: {shortened(found[1].strip())}; write "
            f"<answer>{task.answer}</answer>, once"
        )
    return RetrievalTrace(task, replies)


def _is_one_call(look: str) -> bool:
    end = _END.search(look)
    return end is not None and sum(look.count(tag) for tag in {end[0], _CALL_END, _ZOOM_END}) == 1


def _looked_at(replies: tuple[str, ...]) -> tuple[TimeSpan | None, float | None]:
    """Window and rate of the last look; every look and zoom has to be well-formed, or it would teach malformed ones.
    Calls of users' tools are read when the trace is run."""
    span, fps = None, None
    for reply in replies[:-1]:
        if reply.endswith(_ZOOM_END) and isinstance(zoom := read_zoom(reply), MalformedCall):
            raise UnusableRow(f"the call cannot be read: {zoom.reason}")
        if not reply.endswith(_CALL_END):
            continue
        call = parse_call(reply, duration_s=_ANY_LENGTH_S, native_fps=0.0, rules=_AS_WRITTEN)
        if not isinstance(call, RetrievalCall):
            raise UnusableRow(f"the call cannot be read: {call.reason}")
        span, fps = call.span, call.asked_fps
    return span, fps


def _conversation(row: Mapping[str, object]) -> tuple[str, str]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) != 2:
        told = f"{len(turns)} turns: write a row for each question" if isinstance(turns, list) else shortened(turns)
        raise UnusableRow(f"'conversations' must be one question and one reply, got {told}")
    question, reply = map(as_mapping, turns)
    if (question.get("from"), reply.get("from")) != ("human", "gpt"):
        raise UnusableRow("'conversations' must be from 'human', then from 'gpt'")
    return text_at(question, "value"), text_at(reply, "value")


def video_at(row: Mapping[str, object]) -> str:
    """The video's name: a text, or a list with nothing else in it.

    Raises:
        UnusableRow: none, or several: a task is about one clip.
    """
    video = row.get("video")
    if isinstance(video, list) and len(video) != 1:
        raise UnusableRow(f"exactly one video per row is supported, got {len(video)}: a question is about one clip")
    return text_at({**row, "video": video[0]} if isinstance(video, list) else row, "video")


FORMATS: Mapping[str, RowFormat] = {
    "dm_rl": RowFormat(json_rows, _dm_rl_task),
    "dm_cot": RowFormat(json_rows, _dm_cot_task, _dm_cot_trace),
    "charades_sta": RowFormat(text_lines, _charades_task),
}
