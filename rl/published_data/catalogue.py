"""The data sets that `dynframe prepare` knows: their files' names, and the authors' numbers with where these stand.

A number that the authors have not published is None, and is shown so: nothing here is estimated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from envs.benchmarks.registry import resolve

COUNTED = "counted in the authors' file"
IN_PAPER = "the paper"
README = "the repository's README"


class Use(StrEnum):
    """What a data set is read for."""

    BENCHMARK = "benchmark"
    TASKS = "tasks"  # of reinforcement learning
    TRACES = "traces"  # of the cold start
    CONVERSATIONS = "conversations"  # of fine-tuning


@dataclass(frozen=True, slots=True)
class AuthorsNumber:
    """A number as the authors have it."""

    count: int | None  # None: not published
    source: str  # where it stands; of None, what is known instead


UNPUBLISHED = AuthorsNumber(None, "not published")


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a data set: the files that hold its rows, and how many there are."""

    name: str
    annotations: tuple[str, ...]  # patterns of file names, the authors' own first
    rows: AuthorsNumber
    videos: AuthorsNumber = UNPUBLISHED
    beside: tuple[str, ...] = ()  # files that are read with the annotation and lie beside it
    several: bool = False  # all files that fit are read, not one
    folder: bool = False  # what is read is the folder that holds them


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A data set by its name here."""

    name: str
    title: str
    use: Use
    format: str  # of `data.*.format` or `finetune.sources.*.format`; of a benchmark its name
    splits: tuple[Split, ...]


def known_set(name: str) -> PublishedSet:
    """The data set of this name.

    Raises:
        KeyError: there is none; says which there are.
    """
    if name not in SETS:
        raise KeyError(f"unknown data set {name!r}; known: {', '.join(SETS)}")
    return SETS[name]


def _questions(benchmark: str, split: str) -> AuthorsNumber:
    """As the benchmark's own reader has it, with its paper and repository."""
    found = resolve(benchmark)
    paper = re.match(r".*?arXiv [\d.]*\d", found.source)
    return AuthorsNumber(found.published.splits[split], paper[0] if paper else found.source)


def _benchmark(
    name: str, title: str, *splits: tuple[str, tuple[str, ...], AuthorsNumber], folder: bool = False
) -> PublishedSet:
    made = tuple(Split(split, files, _questions(name, split), videos, folder=folder) for split, files, videos in splits)
    return PublishedSet(name, title, Use.BENCHMARK, name, made)


def _nextgqa() -> PublishedSet:
    def split(name: str, videos: int) -> Split:
        beside = (f"gsub_{name}.json", "map_vid_vidorID.json")
        return Split(name, (f"{name}.csv",), _questions("nextgqa", name), AuthorsNumber(videos, COUNTED), beside)

    return PublishedSet("nextgqa", "NExT-GQA", Use.BENCHMARK, "nextgqa", (split("test", 990), split("val", 567)))


def _moments() -> tuple[PublishedSet, ...]:
    """Benchmarks in which a window is to be found."""
    val_1 = ("val_1", ("val_1.json", "val.json"), AuthorsNumber(4917, COUNTED))
    val_2 = ("val_2", ("val_2.json",), UNPUBLISHED)
    charades = ("test", ("charades_sta_test.txt",), AuthorsNumber(1334, COUNTED))
    return (
        _benchmark("activitynet_mr", "ActivityNet Captions, moment retrieval", val_1, val_2),
        _benchmark("charades_sta", "Charades-STA", charades),
        _nextgqa(),
        _benchmark("qvhighlights", "QVHighlights", ("val", ("highlight_val_release.jsonl",), UNPUBLISHED)),
        _benchmark("rextime", "ReXTime", ("val", ("rextime_val.json",), AuthorsNumber(696, COUNTED))),
    )


def _choices() -> tuple[PublishedSet, ...]:
    """Benchmarks of multiple choice."""
    perspectives, info = ("video_perspective.json", "question_perspective.json"), ("video_info.meta.jsonl",)
    of_both = {
        videos: AuthorsNumber(None, f"not published by split; {videos} in both") for videos in ("3,763", "5,385")
    }
    longvideobench = ("validation", ("lvb_val.json", "validation-*.parquet"), of_both["3,763"])
    mlvu = ("dev", ("[1-7]_*.json",), AuthorsNumber(1242, COUNTED))
    video_mme = ("video_mme*.json*", "Video-MME*.json*", "test-*.parquet")
    return (
        _benchmark("favor_bench", "FAVOR-Bench, close-ended", ("test", perspectives, AuthorsNumber(1776, README))),
        _benchmark("longvideobench", "LongVideoBench", longvideobench),
        _benchmark("lvbench", "LVBench", ("test", info, AuthorsNumber(103, IN_PAPER))),
        _benchmark("mlvu", "MLVU-Dev, the seven choice tasks", mlvu, folder=True),
        _benchmark("motionbench", "MotionBench, questions with public answers", ("dev", info, of_both["5,385"])),
        _benchmark("video_mme", "Video-MME", ("test", video_mme, AuthorsNumber(900, IN_PAPER))),
    )


def _training() -> tuple[PublishedSet, ...]:
    """What policies are trained on."""

    def split(files: tuple[str, ...], about: str) -> Split:
        return Split(
            "train", files, AuthorsNumber(None, f"{about} by its name; not published to the row"), several=True
        )

    rl = split(("*grpo*.json*", "*dm_rl*.json*", "*DM-RL*.json*"), "about 45,000")
    cot = split(("*_fps.json*", "*dm_cot*.json*", "*DM-CoT*.json*"), "about 74,000")
    return (
        PublishedSet("dm_rl", "DM-RL-45k", Use.TASKS, "dm_rl", (rl,)),
        PublishedSet("dm_cot", "DM-CoT-74k", Use.TRACES, "dm_cot", (cot,)),
        _llava_video_178k(),
    )


def _llava_video_178k() -> PublishedSet:
    """Three kinds of rows, each in a file per source and length of clips."""
    rows = {"caption": ("*_cap_*.json", 178_510), "open_ended": ("*_oe_*.json", 960_792)}
    rows["multi_choice"] = ("*_mc_*.json", 196_198)
    made = tuple(
        Split(kind, (pattern,), AuthorsNumber(count, README), several=True) for kind, (pattern, count) in rows.items()
    )
    return PublishedSet("llava_video_178k", "LLaVA-Video-178K", Use.CONVERSATIONS, "llava", made)


SETS: Mapping[str, PublishedSet] = {known.name: known for known in (*_moments(), *_choices(), *_training())}
