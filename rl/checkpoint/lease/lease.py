"""One writer per run: a lease that is taken before anything is written, and kept by heartbeats.

| the lease that is there | a start |
|---|---|
| none | takes it |
| of a process of this machine that has ended | takes it over at once |
| of a process of this machine whose heartbeat is fresh | is refused |
| of another machine, or of a process that is suspended | watches: refused at a heartbeat, takes over without |

Clocks of two machines are never compared: a heartbeat is a change of the text, and stale is what has not changed while
it was watched. A writer that finds another one's lease in the place of its own stops before it writes anything more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, Self

from rl.checkpoint.lease.holder import Holder, holder_text, process_start, read_holder

log = logging.getLogger(__name__)

ATTEMPTS = 20  # to take a lease that changes under our hands
POLLS = 10  # looks at a lease in the time of one heartbeat, while it is watched


class LeaseHeldError(RuntimeError):
    """Another process writes here; the message says which one, since when, and how to stop it."""


class LeaseLostError(RuntimeError):
    """Another process has taken over, since this one gave no sign of life: it may not write any more."""


class LeaseFile(Protocol):
    """Where a lease lies. `settle_s`: how long another's write may be under way unseen; 0: swaps exclude each other."""

    settle_s: float

    def read(self) -> bytes | None: ...

    def swap(self, expected: bytes | None, new: bytes | None) -> bool:
        """Put `new` in the place of `expected` (None: no file); False: something else is there."""
        ...


class Lease:
    """The right to write, from `with` to the end of it.

    with Lease(file, this_process()) as lease:     # LeaseHeldError: another process has it
        lease.check()                              # before writing; LeaseLostError: it was taken over

    Args:
        every_s: between heartbeats.
        stale_after_s: without a heartbeat, after which others may take over.
        clock: seconds since the epoch; goes on while the machine sleeps.
    """

    def __init__(
        self,
        file: LeaseFile,
        me: Holder,
        *,
        every_s: float = 5.0,
        stale_after_s: float = 60.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file, self._me = file, me
        self._every_s, self._stale_after_s = every_s, stale_after_s
        self._clock, self._sleep = clock, sleep
        self._text = b""  # of the lease as we wrote it last
        self._seen_s = 0.0  # when we last saw that it is ours
        self._lost: LeaseLostError | None = None
        self._is_failing = False  # heartbeats cannot be written
        self._beating = threading.Lock()
        self._released = threading.Event()

    def __enter__(self) -> Self:
        self.acquire()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """
        Raises:
            LeaseHeldError: another process has it.
            OSError: the file cannot be read or written.
        """
        for _ in range(ATTEMPTS):
            found = self._file.read()
            if found is not None:
                self._require_abandoned(found)
            now = self._clock()
            text = holder_text(replace(self._me, started_s=now, heartbeat_s=now))
            if not self._file.swap(found, text):
                continue  # another start was faster: look who
            if self._file.settle_s:
                self._sleep(self._file.settle_s)
                if self._file.read() != text:
                    continue
            self._me, self._text, self._seen_s = read_holder(text), text, now
            return
        raise LeaseHeldError(f"{self._file}: other processes take it again and again")

    def check(self) -> None:
        """To be called before writing; cheap. Waits for the storage only where the heartbeats are late.

        Raises:
            LeaseLostError: another process has taken over.
        """
        if self._lost is None and self._clock() - self._seen_s > 2 * self._every_s:
            self.beat()  # the machine, or this process, may have been suspended
        self.require_not_lost()

    def require_not_lost(self) -> None:
        """What is known without asking the storage.

        Raises:
            LeaseLostError: another process has taken over.
        """
        if self._lost is not None:
            raise self._lost

    def beat(self) -> None:
        """Say that this process lives, and see that the lease is still its own. Never raises."""
        with self._beating:
            if self._lost is not None or self._released.is_set():
                return
            try:
                self._beat()
            except (OSError, RuntimeError) as error:  # a full disk, storage out of reach: nobody has taken over by that
                if not self._is_failing:
                    log.warning("%s: no heartbeat could be written, tried again: %s", self._file, error)
                self._is_failing = True
            else:
                self._is_failing = False

    def release(self) -> None:
        """Let others have it."""
        self._released.set()
        with self._beating:
            try:
                self._file.swap(self._text, None)
            except (OSError, RuntimeError) as error:
                log.warning("%s: could not be removed (the next start removes it): %s", self._file, error)

    def replace_file(self, swap: Callable[[bytes, bytes], bool]) -> None:
        """Let `swap` move what lies beside the lease away, between two heartbeats.

        Args:
            swap: given the text that is there and the one that must be there afterwards; False: it was not possible.
        Raises:
            LeaseLostError: another process has taken over.
        """
        with self._beating:
            text = self._next()
            if not swap(self._text, text):
                self._lose(self._file.read())
                raise self._lost
            self._text, self._seen_s = text, self._clock()

    def _keep(self) -> None:
        while not self._released.wait(self._every_s):
            self.beat()

    def _beat(self) -> None:
        now, found = self._clock(), self._file.read()
        if found is None:
            log.warning("%s: was removed; taken again", self._file)
        elif found != self._text:
            self._lose(found)
            return
        self._seen_s = now  # though the disk be full: nobody else has it
        text = self._next()
        if self._file.swap(found, text):
            self._text = text
        else:
            self._lose(self._file.read())

    def _next(self) -> bytes:
        self._me = replace(self._me, heartbeat_s=self._clock(), beats=self._me.beats + 1)
        return holder_text(self._me)

    def _lose(self, found: bytes | None) -> None:
        other = read_holder(found)
        self._lost = LeaseLostError(
            f"{self._file}: {other or 'another process'} has taken over this run, since {self._me} gave no sign of "
            f"life for {self._stale_after_s:g} s; nothing more is written here, the newest checkpoint stays"
        )
        log.error("%s", self._lost)

    def _require_abandoned(self, found: bytes) -> None:
        """Return when the lease may be taken over."""
        holder, age_s = read_holder(found), 0.0
        if holder is not None and holder.owner == self._me.owner:
            raise LeaseHeldError(f"{self._file}: this start holds it already; trainer.remote is the run's own folder")
        if holder is not None:
            age_s = self._clock() - holder.heartbeat_s
            if holder.host == self._me.host and holder.machine == self._me.machine != "":
                if process_start(holder.process_id) != holder.process_started:
                    log.warning("%s: taken over from %s, which has ended", self._file, holder)
                    return
                if 0.0 <= age_s <= self._stale_after_s:
                    raise LeaseHeldError(self._refusal(holder, age_s))
        self._watch(found, holder, 3 * self._every_s if age_s > self._stale_after_s else self._stale_after_s)

    def _watch(self, found: bytes, holder: Holder | None, seconds: float) -> None:
        """Return when the lease has not changed for so long, or is gone."""
        who = holder or "a process that cannot be named"
        log.warning("%s: held by %s; waiting up to %.0f s for its heartbeat", self._file, who, seconds)
        poll_s = self._every_s / POLLS
        for _ in range(round(seconds / poll_s)):
            self._sleep(poll_s)
            now = self._file.read()
            if now is None:
                return
            if now != found:
                raise LeaseHeldError(self._refusal(read_holder(now), 0.0))
        log.warning("%s: taken over from %s, without a heartbeat for %.0f s", self._file, who, seconds)

    def _refusal(self, holder: Holder | None, age_s: float) -> str:
        remedy = "or give this run a name of its own (name=…)"
        if holder is None:
            return f"{self._file}: another process is writing this run; let it end, {remedy}"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.started_s))
        place = "" if holder.job or holder.host == self._me.host else f" on {holder.host}"
        return (
            f"{self._file}: this run is being written by {holder}, since {since}, last heartbeat {age_s:.0f} s ago; "
            f"stop it with `{holder.stop}`{place}, {remedy}"
        )


def may_always_write() -> None:
    """Where nobody else could write: what `Lease.check` is elsewhere."""
