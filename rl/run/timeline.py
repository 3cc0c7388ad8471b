"""A run's times of work: what the driver does itself, put beside what its workers report, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rl.tracking.backlog import Backlog
from rl.tracking.lanes import LANES, idle_shares, write_lanes
from rl.tracking.lines import cut_torn_line
from rl.trajectory import WorkSpan


class Timeline:
    """From one report to the next; the first begins when this is made.

    with timeline.span("push"): ...
    metrics |= timeline.step(12, spans_of_workers, workers=["rollout/0", "learner/0"])
    """

    def __init__(self, run_dir: Path, backlog: Backlog, clock: Callable[[], float] = time.time) -> None:
        self._path, self._backlog, self._clock = run_dir / LANES, backlog, clock
        cut_torn_line(self._path)
        self._since_s = clock()
        self._spans: list[WorkSpan] = []

    @contextmanager
    def span(self, work: str) -> Iterator[None]:
        """Something that the driver does, or waits for; it has a lane of its own."""
        start_s = self._clock()
        try:
            yield
        finally:
            self._spans.append(WorkSpan(work, work, start_s, self._clock()))

    def step(self, step: int, spans: Sequence[WorkSpan], *, workers: Sequence[str]) -> dict[str, float]:
        """Put down who worked since the last call; returns idle shares.

        Args:
            step: that is reported, as in metrics.jsonl.
            workers: names of all engines and learner ranks.
        """
        start_s, end_s = self._since_s, self._clock()
        every, self._spans, self._since_s = [*self._spans, *spans], [], end_s
        self._backlog.put(self._path, partial(write_lanes, self._path, step, every, start_s, end_s))
        return idle_shares(every, workers, start_s, end_s)
