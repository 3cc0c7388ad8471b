"""Where the members of a link meet. Free of torch: the driver, which connects them, does without."""

from __future__ import annotations

from dataclasses import dataclass


class LinkError(RuntimeError):
    """A transfer did not come to its end on this member of the link."""


@dataclass(frozen=True, slots=True)
class MeetingPoint:
    """Where the members of a link meet, and how they are connected."""

    transport: str  # gloo | nccl | ipc
    host: str
    port: int
    members: int  # the sender included
    timeout_s: float  # for all to meet, and for one use of the link
