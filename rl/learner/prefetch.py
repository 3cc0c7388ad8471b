"""Micro-batches prepared one ahead: the next is made in a thread while the GPU, or the CPU, works on this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from torch.profiler import record_function

Made = TypeVar("Made")


class OneAhead(Generic[Made]):
    """What `makers` make, in their order, each in turn in one thread, while the one before it is in use.

    with OneAhead(makers) as batches:
        for batch in batches: ...

    At most two things are there at a time: the one in use, if its user lets go of it before asking for the next, and
    the one that is being made or waits. What a maker raises is raised where its thing is asked for. The thread has
    ended when the context has.
    """

    def __init__(self, makers: Iterable[Callable[[], Made]]) -> None:
        self._makers = iter(makers)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._ahead: Future[Made] | None = None
        self.waited_s = 0.0  # for things that were not ready when they were asked for

    def __enter__(self) -> Self:
        self._begin_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Made]:
        return self

    def __next__(self) -> Made:
        if self._ahead is None:
            raise StopIteration
        start = time.perf_counter()
        made = self._ahead.result()
        self.waited_s += time.perf_counter() - start
        self._begin_next()
        return made

    def _begin_next(self) -> None:
        maker = next(self._makers, None)
        self._ahead = None if maker is None else self._pool.submit(_made, maker)


def _made(maker: Callable[[], Made]) -> Made:
    with record_function("learner/prepare"):
        return maker()
