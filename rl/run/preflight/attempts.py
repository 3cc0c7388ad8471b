"""What cannot be looked at is a finding, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from envs.video.reader import VideoError
from rl.run.preflight.findings import Finding, Level, on_one_line

REFUSALS = (ValueError, OSError, RuntimeError, KeyError, VideoError)  # what a part raises that cannot do its work


def attempt(subject: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    """A finding; of what cannot be looked at, why."""
    try:
        yield look()
    except REFUSALS as error:
        yield Finding(subject, Level.FAILED, on_one_line(error))
