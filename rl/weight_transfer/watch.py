"""How each member of a link learns that another has given up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from rl.weight_transfer.meeting import LinkError, MeetingPoint

log = logging.getLogger(__name__)

FAILED = "failed"  # key in the store: somebody has given up
GLANCE_S = 0.5  # between two looks at that key while a transfer runs
SHORTEST_S, LONGEST_S = 1e-4, 2e-3  # between two looks at what is waited for


class Watch:
    """Looks while a transfer runs whether somebody has given up, and tears this member out of it then."""

    def __init__(self, point: MeetingPoint, tear: Callable[[], None]) -> None:
        self._timeout_s, self._tear = point.timeout_s, tear
        # a connection of its own, used by a thread of its own
        self._looking = dist.TCPStore(
            point.host, point.port, is_master=False, timeout=timedelta(seconds=point.timeout_s), wait_for_workers=False
        )
        self._lock, self._why = threading.Lock(), ""

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """Around one use of the link.

        Raises:
            LinkError: for whatever went wrong in it.
        """
        if self._why:
            raise LinkError(self._why)
        ended = threading.Event()
        looking = threading.Thread(target=self._look, args=(ended,), name="link", daemon=True)
        looking.start()
        try:
            yield
        except (RuntimeError, OSError) as error:
            self.fail(first_line(error))
            raise LinkError(self._why) from error
        except BaseException:  # the one who fills or reads the buffers gave up
            self.fail("given up")
            raise
        finally:
            ended.set()
            looking.join()

    def wait(self, done: Callable[[], bool]) -> None:
        """Until something is done. The store's and the group's own waits cannot be interrupted.

        Raises:
            LinkError: somebody gave up before.
        """
        pause_s = SHORTEST_S
        while True:
            if self._why:
                raise LinkError(self._why)
            if done():
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_S)

    def fail(self, why: str = "given up") -> None:
        """Say it to everybody, and let go of what this member waits for."""
        with self._lock:
            if self._why:
                return
            self._why = why
            tear, self._tear = self._tear, _torn  # whoever made this watch is not held by it any longer
        try:
            self._looking.set(FAILED, why)
        except (RuntimeError, OSError) as error:  # with the sender, the store is gone: they see that, too
            log.debug("the link's store is gone: %s", error)
        tear()

    def _look(self, ended: threading.Event) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not ended.wait(GLANCE_S):
            try:
                failed = self._looking.check([FAILED])
            except (RuntimeError, OSError) as error:
                self.fail(f"the sender is gone: {first_line(error)}")
                return
            if failed:
                self.fail("another member gave up")
                return
            if time.monotonic() > deadline:
                self.fail(f"not done within {self._timeout_s:.0f} s (weight_sync.timeout_s)")
                return


def _torn() -> None:
    """Nothing is left to tear."""


def first_line(error: Exception) -> str:
    """Of its message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
