"""What a command says while it works: when a stage starts, how far it is, and how long it took.

On a terminal a stage with a known size has a bar. Elsewhere (a job's log, nohup, CI) there are no bars and no escape
codes: a line at the start, one every REPORT_S seconds, one at the end, each with its wall-clock time.

    12:30:58 indexing 40,000 videos …
    12:31:28 indexing 40,000 videos: 9,120 of 40,000, 304/s, 1m41s left
    12:32:47 indexing 40,000 videos: done in 1m49s

The lines also come while one part takes long: a thread says them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from rl.tracking.log_file import SAID

REPORT_S = 30.0  # between two lines of a stage where there is no bar

Clock = Callable[[], float]  # seconds

_said = logging.getLogger(SAID)


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line with its wall-clock time, as it is: no markup, no line broken; log files get it, too.

    Output that goes to a full disk costs lines, and no run.
    """
    _said.info("%s", text)
    with suppress(OSError):
        console.print(Text(f"{time.strftime('%H:%M:%S')} {text}", style=style), soft_wrap=True)


def spell_seconds(seconds: float) -> str:
    """A duration for people: "1.2 s", "42 s", "1m10s", "2h05m"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def spell_rate(per_s: float) -> str:
    """Parts in a time, for people: "304/s", "2.5/s", "42/min", "7/h"."""
    unit, seconds = next(((unit, s) for unit, s in (("s", 1), ("min", 60)) if per_s * s >= 0.95), ("h", 3600))
    rate = per_s * seconds
    return f"{rate:,.0f}/{unit}" if rate >= 9.95 else f"{rate:.1f}/{unit}"


def progress_bar(console: Console) -> Progress:
    """The one look of every bar; on what is no terminal it draws nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class Stage:
    """A stage under way: `advance` after each of its `total` parts."""

    def __init__(self, console: Console, doing: str, progress: Progress, total: int, done: int, clock: Clock) -> None:
        self._console, self._doing, self._progress, self._clock = console, doing, progress, clock
        self._total, self._first, self._done = total, done, done
        self._bar = progress.add_task(doing, total=total, completed=done)
        self._started_s = self._reported_s = clock()
        self._saying = threading.Lock()

    def advance(self) -> None:
        """One part more is done."""
        self.update(self._done + 1)

    def update(self, done: int, total: int | None = None) -> None:
        """So many parts are done, of so many in all if that has become known."""
        self._done, self._total = done, self._total if total is None else total
        self._progress.update(self._bar, completed=done, total=self._total)
        self.report()

    def report(self) -> None:
        """Say how far it is, where there is no bar and nothing was said for REPORT_S seconds."""
        with self._saying:
            now_s = self._clock()
            if self._console.is_terminal or now_s - self._reported_s < REPORT_S:
                return
            self._reported_s = now_s
            say(self._console, f"{self._doing}: {self._how_far(now_s - self._started_s)}")

    def _how_far(self, passed_s: float) -> str:
        done, new = f"{self._done:,} of {self._total:,}", self._done - self._first
        if not new:
            return f"{done}, {spell_seconds(passed_s)} so far"
        left_s = (self._total - self._done) * passed_s / new
        return f"{done}, {spell_rate(new / passed_s)}, {spell_seconds(left_s)} left"


@contextmanager
def stage(console: Console, doing: str, *, clock: Clock = time.perf_counter) -> Iterator[None]:
    """Say that something begins and, unless it raises, how long it took."""
    say(console, f"{doing} …")
    started_s = clock()
    yield
    say(console, f"{doing}: done in {spell_seconds(clock() - started_s)}")


@contextmanager
def counted_stage(
    console: Console, doing: str, total: int, *, done: int = 0, clock: Clock = time.perf_counter
) -> Iterator[Stage]:
    """A stage of `total` parts, `done` of them done before: a bar on a terminal, a line now and then elsewhere."""
    with stage(console, doing, clock=clock), progress_bar(console) as progress:
        under_way = Stage(console, doing, progress, total, done, clock)
        with _reporting(under_way):
            yield under_way


@contextmanager
def _reporting(under_way: Stage) -> Iterator[None]:
    """Have it report also while none of its parts ends."""
    is_over = threading.Event()

    def keep_reporting() -> None:
        while not is_over.wait(REPORT_S / 4):
            under_way.report()

    reporter = threading.Thread(target=keep_reporting, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        is_over.set()
        reporter.join(REPORT_S)  # output that blocks holds up no command
