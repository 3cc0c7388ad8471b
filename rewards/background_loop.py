"""An event loop in a thread of its own, in which async rewards are awaited.

It is kept between calls, and with it what they keep open: a client's connections to a judge live in a loop. The main
thread only waits, so that an alarm reaches it whatever the coroutines do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rewards.limits import Guard

CANCEL_S = 1.0  # for cancelled coroutines to end, before the thread is left to them


@dataclass(frozen=True, slots=True)
class Raised:
    """What took the place of a value."""

    error: BaseException


class BackgroundLoop:
    """Runs coroutines side by side. Its thread starts with the first of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, calls: Sequence[Callable[[], Awaitable[Any]]], guard: Guard) -> list[Any]:
        """The value of each call, or Raised; all are awaited at once.

        A TimeoutError that `guard` raises is that of every call which has no value by then. They are cancelled; where
        one does not end, the thread is left to it, and the next calls get a new one.
        """
        found: list[Any] = [None] * len(calls)
        unfinished = set(range(len(calls)))

        async def one(place: int) -> None:
            try:
                found[place] = await calls[place]()
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():
                    raise
                found[place] = Raised(RuntimeError("it was cancelled from within"))
            except BaseException as error:  # SystemExit would end the loop
                found[place] = Raised(error)
            unfinished.discard(place)

        async def every() -> None:
            await asyncio.gather(*map(one, range(len(calls))))

        running = asyncio.run_coroutine_threadsafe(every(), self._started())
        try:
            with guard():
                running.result()
        except TimeoutError as error:
            late = set(unfinished)
            self._give_up(running)
            return [Raised(error) if place in late else value for place, value in enumerate(found)]
        except BaseException:  # a signal that ends this process
            running.cancel()
            raise
        return found

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True).start()
        return self._loop

    def _give_up(self, running: Any) -> None:
        running.cancel()
        ended = threading.Event()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._loop.call_soon(ended.set))
        if not ended.wait(CANCEL_S):
            self._loop = None  # something blocks it
