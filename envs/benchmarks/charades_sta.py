"""Charades-STA: find the moment that a sentence describes."""

from __future__ import annotations

from pathlib import Path

from envs.benchmarks.benchmark import Benchmark, Example, LoadedExamples
from envs.benchmarks.metrics import moment_values
from envs.benchmarks.published import Published
from envs.benchmarks.reading import read_examples, require_file
from envs.data.formats import FORMATS

_ROWS = FORMATS["charades_sta"]


def read(annotation: Path, video_root: Path) -> LoadedExamples:
    """The authors' charades_sta_test.txt: lines "VIDEO start end##sentence."; videos VIDEO.mp4.

    561 of the 3,720 test windows end after their clip: they stay as annotated, as in every published number.
    """
    require_file(annotation)

    def example(line: int, value: object) -> Example:
        task = _ROWS.task(value, video_root, f"{annotation.stem}:{line}")
        return Example(task, (task.evidence_span,))

    return read_examples(_ROWS.rows(annotation), video_root, example)


CHARADES_STA = Benchmark(
    name="charades_sta",
    source=(
        "Gao et al. 2017, arXiv 1705.02101. R1@{.3, .5, .7} and mIoU over all sentences; an answer that "
        "cannot be read and a missing one are 0."
    ),
    read=read,
    score=moment_values,
    headline="miou",
    published=Published(
        why_not=dict.fromkeys(("r1@0.3", "r1@0.5", "r1@0.7", "miou"), ""),
        splits={"test": 3720},
    ),
)
