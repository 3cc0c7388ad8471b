"""What must hold of every reader of a policy's text, whatever the text: one function per reader, which raises if not.

Hypothesis draws texts for them (tests/test_hostile_text.py), and atheris looks for texts that reach new lines of the
readers (tests/fuzz_hostile_text.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

from envs.answers.characters import usual_characters
from envs.answers.comparison import read_score, score_answer, score_leniently
from envs.answers.lenient import final_text, in_strict_form, read_letter_leniently
from envs.answers.letters import read_letter, written_options
from envs.answers.numbers import read_number
from envs.answers.reference import UnusableReference, read_reference
from envs.answers.text import normalised, trimmed
from envs.answers.windows import read_span
from envs.benchmarks.benchmark import Benchmark, Example
from envs.benchmarks.choices import letter_among, letter_of_text, without_labels, written_letters
from envs.benchmarks.metrics import chosen_letter, stated_window
from envs.benchmarks.prediction import prediction_of, read_leniently
from envs.benchmarks.registry import BUILTIN, resolve
from envs.data.formats import make_task
from envs.data.rows import UnusableRow
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times, parse_call
from rewards.answer import answer, answer_body
from rewards.frame_cost import frame_cost
from rewards.frame_rate import frame_rate
from rewards.golden import golden_group
from rewards.output_format import output_format
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rl.report.page import script_safe_json
from rl.tracking.records import records
from rl.trajectory import (
    AnswerKind,
    Call,
    MalformedCall,
    RefusedCall,
    RetrievalCall,
    Segment,
    SegmentRewards,
    TimeSpan,
    Trajectory,
)

TAGS = ("<think>", "</think>", "<span>", "</span>", "<fps>", "</fps>", "<answer>", "</answer>", "<video>")
WORDS = (*TAGS, "<|im_end|>", "<|video_pad|>", " - ", "-", ".", "0", "9", "1e9", "nan", "inf", " ", "\n", "(A)", "B.")
ODD = ("\x00", "\u2028", "\u0301", "\u0323", "\ufdfa", "\u0f73", "\u202e", "\ud800", "\u0661", "\u017f", "\U0001f600")
TERMS = (
    WeightedReward("window", temporal_iou, Segment.SAMPLING),
    WeightedReward("scaled", partial(temporal_iou, scaled=True), Segment.SAMPLING),
    WeightedReward("rate", frame_rate, Segment.SAMPLING),
    WeightedReward("cost", partial(frame_cost, budget_frames=1), Segment.SAMPLING, 0.0, "sum"),
    WeightedReward("answer", answer, Segment.REASONING),
    WeightedReward("lenient", partial(answer, reading="lenient"), Segment.REASONING),
    WeightedReward("format", output_format, Segment.REASONING),
    WeightedReward("strict_format", partial(output_format, require_call=True), Segment.REASONING),
)


@dataclass(frozen=True, slots=True)
class Clip:
    """What a call is judged against."""

    duration_s: float = 60.0
    native_fps: float = 30.0
    max_fps: float = 10.0
    min_window_s: float = 0.1
    max_frames: int = 32
    room: int | None = None  # frames that the context still holds
    floor: float = 0.0  # min_fps, as a share of max_fps

    @property
    def rules(self) -> RetrievalRules:
        """Of a run."""
        return RetrievalRules(1, self.min_window_s, self.max_fps, self.max_frames, min_fps=self.floor * self.max_fps)


def call(text: str, clip: Clip = Clip()) -> Call | None:
    """A request is granted within the clip and the caps, refused with a reason, or was none."""
    found = parse_call(
        text, duration_s=clip.duration_s, native_fps=clip.native_fps, rules=clip.rules, max_frames=clip.room
    )
    assert (found is None) == (not text.endswith("</fps>"))
    if isinstance(found, MalformedCall | RefusedCall):
        assert found.reason and "\n" not in found.reason
    if isinstance(found, RetrievalCall):
        _within(found, clip)
    return found


def _within(found: RetrievalCall, clip: Clip) -> None:
    cap = clip.max_frames if clip.room is None else min(clip.max_frames, clip.room)
    times_s_N = frame_times(found)
    assert 0 <= found.span.start_s < found.span.end_s <= clip.duration_s
    assert 1 <= found.num_frames <= cap and len(times_s_N) == found.num_frames
    assert 0 < found.fps <= max(clip.max_fps, 0.01)
    assert not (0.01 <= clip.native_fps < math.inf) or found.fps <= clip.native_fps
    fastest = min(clip.rules.max_fps, clip.native_fps if 0 < clip.native_fps < math.inf else math.inf)
    assert found.fps > min(clip.rules.min_fps, fastest) - 0.01
    assert all(found.span.start_s <= time_s < found.span.end_s for time_s in times_s_N)
    assert all(earlier < later for earlier, later in pairwise(times_s_N))
    assert all(map(math.isfinite, (found.asked.start_s, found.asked.end_s, found.asked_fps)))


def rewards(text: str, clip: Clip = Clip()) -> None:
    """Every built-in reward gives every text a value in 0..1, a price one below: none fails."""
    asked = call(f"{text}</fps>", clip)
    for kind in AnswerKind:
        golden = golden_group(kind)
        first, second = (replace(golden.trajectories_G[i], answer_text=text) for i in (0, 3))
        looked = replace(first, turns=(replace(first.turns[0], call=asked), *first.turns[1:]))
        scored = score_group(replace(golden, trajectories_G=(looked, second)), TERMS)
        for verdict in scored.rewards_G:
            assert isinstance(verdict, SegmentRewards), verdict
            terms = dict(verdict.breakdown)
            assert -clip.max_frames <= terms.pop("cost") <= 0
            assert all(0 <= value <= 1 for value in (verdict.sampling, verdict.reasoning, *terms.values()))
    assert bool(output_format(golden.task, looked)) <= (answer_body(text) not in (None, ""))


def readers(text: str, clip: Clip = Clip()) -> None:
    """A letter is a letter, a window is forward in time, a body is part of the text; else there is none."""
    letter, window, body = read_letter(text), read_span(text), answer_body(text)
    assert letter is None or (len(letter) == 1 and "A" <= letter <= "Z")
    assert window is None or 0 <= window.start_s < window.end_s < 10**9
    assert body is None or (body in text and body == body.strip())
    assert normalised(text) == " ".join(normalised(text).split())
    assert trimmed(text) in text and final_text(text) in text.replace("<|im_end|>", "").replace("<|video_pad|>", "")
    assert letter in (None, read_letter_leniently(text))
    usual_characters(text), read_number(text), read_score(text), written_options(text)
    for kind in AnswerKind:
        assert in_strict_form(text, kind) == text or len(in_strict_form(text, kind)) <= 18 * max(len(text), 2)


def references(text: str, clip: Clip = Clip()) -> None:
    """What is taken as a reference earns its full reward, in either reading; what is not says why."""
    for kind in (None, *AnswerKind):
        try:
            reference, read_as = read_reference(text, kind)
        except UnusableReference as refusal:
            assert str(refusal) and len(str(refusal)) < 400
            continue
        assert kind in (None, read_as)
        assert score_answer(reference, reference, read_as) == 1.0
        assert score_leniently(reference, reference, read_as) == 1.0
        golden = golden_group()
        task = replace(golden.task, answer=reference, answer_kind=read_as)
        trajectory = replace(golden.trajectories_G[0], answer_text=f"<think></think><answer>{reference}</answer>")
        assert answer(task, trajectory) == answer(task, trajectory, reading="lenient") == 1.0
        assert output_format(task, trajectory) == 1.0


def benchmarks(text: str, clip: Clip = Clip()) -> None:
    """Every benchmark scores every answer with values in 0..1."""
    asked = call(f"{text}</fps>", clip)
    trajectory = golden_group().trajectories_G[0]
    trajectory = replace(
        trajectory, answer_text=text, turns=(replace(trajectory.turns[0], call=asked), *trajectory.turns[1:])
    )
    prediction = prediction_of(trajectory)
    assert prediction.answer is None or prediction.answer in text
    assert (chosen_letter(prediction) is None) or (stated_window(prediction) is None)
    for benchmark, example in _examples():
        for read in (prediction, read_leniently(prediction, example.task)):
            assert all(0 <= value <= 1 for value in benchmark.score(example, read).values())


@cache
def _examples() -> tuple[tuple[Benchmark, Example], ...]:
    windows = (TimeSpan(3.0, 6.0), TimeSpan(10.0, 12.5))
    task = golden_group().task
    return tuple(
        (resolve(name), Example(task, windows, "counting; order", ("red", "a ball", "blue"))) for name in BUILTIN
    )


def choices(text: str, clip: Clip = Clip()) -> None:
    """Options and labels in a question of a benchmark: read, or refused as an unusable row."""
    options = text.split("\n")
    assert len(without_labels(options)) == len(options)
    for read in (
        lambda: written_letters(text),
        lambda: letter_among(text, "ABCD"),
        lambda: letter_of_text(text, options),
        lambda: make_task("t", "absent.mp4", Path("/nowhere"), text, text, (), None),
    ):
        try:
            read()
        except UnusableRow as refusal:
            assert str(refusal) and len(str(refusal)) < 1_000


def shown(text: str, clip: Clip = Clip()) -> None:
    """A trajectory of any text becomes a record, and the record data of a page that ends no element."""
    golden = golden_group()
    trajectory: Trajectory = replace(golden.trajectories_G[0], answer_text=text, note=text)
    group = replace(golden, task=replace(golden.task, question=text), trajectories_G=(trajectory,))
    (record,) = records([score_group(group, TERMS)], lambda ids: [text] * len(ids))
    page = script_safe_json(record)
    assert page.isascii() and not set("<>&") & set(page)
    assert json.loads(page)["text"] == text


TARGETS: Mapping[str, Callable[[str, Clip], object]] = {
    "call": call,
    "rewards": rewards,
    "readers": readers,
    "references": references,
    "benchmarks": benchmarks,
    "choices": choices,
    "shown": shown,
}
