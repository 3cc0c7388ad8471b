"""What a benchmark is: examples read from the authors' files, and what one prediction is worth by the authors' metric.

A metric here is the value of one example in 0..1; rl.evaluation.evaluate takes the means and their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envs.benchmarks.published import Published
from rl.trajectory import TimeSpan, VideoTask


@dataclass(frozen=True, slots=True)
class Example:
    """One question of a benchmark."""

    task: VideoTask
    windows: tuple[TimeSpan, ...] = ()  # every annotated evidence window, in the file's order
    group: str = ""  # what averages over groups are taken over: a question type, a length of video
    options: tuple[str, ...] = ()  # texts, in the order of their letters; none where they are part of the question
    answerable: bool = True  # False: the authors' answer is none of the options, so every prediction is wrong


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the policy said about an example, as far as it could be read. Nothing is guessed."""

    answer: str | None  # body of the last <answer>, stripped; None: there is none
    windows: tuple[TimeSpan, ...] = ()  # granted windows of its calls, in order
    said: str = ""  # the answer, or where it has no tags what was said in the end


@dataclass(frozen=True, slots=True)
class RejectedExample:
    """A row of an annotation file that was left out, and why."""

    line: int  # where the row starts, counted from 1; in files that have no rows, the row's number
    reason: str
    missing: str = ""  # the video, where the reason is that it is not there


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """The usable rows of a benchmark, and the others."""

    examples: tuple[Example, ...]
    rejected: tuple[RejectedExample, ...] = ()
    left_out: tuple[RejectedExample, ...] = ()  # windows of examples that have others, each with its row's line


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark of the field.

    `score` gives each metric's value for one example; a metric that is absent from its mapping does not apply to that
    example and stays out of the metric's mean. A prediction of None is missing (the video could not be read, say): it
    is worth 0 and has no "unparsed". "unparsed" is 1 where the answer, or the window that the metric needs, could not
    be read: a rate that is reported beside the scores, never repaired by guessing.

    Metrics called "official/…" are what the authors' script prints for the same predictions, where it reads answers or
    divides in another way than we do.
    """

    name: str
    source: str  # paper and official evaluator, with what the denominators are
    read: Callable[[Path, Path], LoadedExamples]  # annotation file or folder, video root
    score: Callable[[Example, Prediction | None], Mapping[str, float]]
    headline: str  # the metric the authors rank by
    over_groups: tuple[str, ...] = ()  # metrics that are means over groups of the mean within; others: over examples
    over_file: tuple[str, ...] = ()  # metrics in which every question of the file counts, 0 if it was not asked
    published: Published = field(default_factory=Published)  # which numbers may stand beside published ones
