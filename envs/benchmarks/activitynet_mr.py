"""ActivityNet moment retrieval: find the moment that a caption of ActivityNet Captions describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples
from envs.benchmarks.metrics import moment_values
from envs.benchmarks.published import Published
from envs.benchmarks.reading import moment_example, read_examples, require_file, window_from
from envs.data.json_rows import json_object
from envs.data.rows import UnusableRow, as_mapping, shortened, text_at


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The captions' val_1.json or val_2.json: {video: {duration, timestamps: [[s, e], …], sentences: […]}}.

    A row is a sentence, numbered from 1 through the file. Videos are VIDEO.mp4 (or .mkv, .webm).
    """
    require_file(annotation)

    def example(number: int, value: object) -> Example:
        video, place, window, sentence = value
        try:
            return moment_example(
                f"{video}:{place}",
                video,
                video_root,
                ("", "videos"),
                text_at({"sentence": sentence}, "sentence"),
                (window_from(window),),
            )
        except UnusableRow as error:
            raise UnusableRow(f"sentence {place + 1} of video {shortened(video)}: {error}") from error

    return read_examples(_sentences(annotation), video_root, example)


def _sentences(annotation: Path) -> Iterator[tuple[int, object]]:
    """(row, (video, place in the video, window, sentence)); a video that does not fit together is one bad row."""
    number = 0
    for video, captions in json_object(annotation).items():
        try:
            captions = as_mapping(captions)
        except UnusableRow as error:
            number += 1
            yield number, UnusableRow(f"video {shortened(video)}: {error}")
            continue
        windows, sentences = captions.get("timestamps"), captions.get("sentences")
        if not (isinstance(windows, list) and isinstance(sentences, list) and len(windows) == len(sentences)):
            number += 1
            yield number, UnusableRow(f"video {shortened(video)} needs as many timestamps as sentences")
            continue
        for place, (window, sentence) in enumerate(zip(windows, sentences, strict=True)):
            number += 1
            yield number, (video, place, window, sentence)


ACTIVITYNET_MR = Benchmark(
    name="activitynet_mr",
    source=(
        "Krishna et al. 2017, arXiv 1705.00754. R1@{.3, .5, .7} and mIoU over all sentences; an answer that "
        "cannot be read and a missing one are 0."
    ),
    read=read,
    score=moment_values,
    headline="miou",
    published=Published(
        why_not=dict.fromkeys(("r1@0.3", "r1@0.5", "r1@0.7", "miou"), ""),
        splits={"val_1": 17505, "val_2": 17031},
    ),
)
