"""Links from a learner rank to engines' workers, device to device: a broadcast over gloo or NCCL, or shared memory.

    sender (member 0)                                   receivers (members 1 … N)
    link = open_link(point, 0, listening)               link = open_link(point, member)
    for buffer in link.sending(sizes): fill(buffer)     for buffer in link.receiving(sizes): read(buffer)

All members open the link together, and name the same sizes each time it is used. Two buffers take turns: while one
travels the other is filled or read. A link that failed anywhere is useless to everybody: the store it was opened over
says so, a member that is stuck in a transfer is torn out of it, and another link is opened.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from rl.weight_transfer.broadcast import BroadcastLink
from rl.weight_transfer.meeting import LinkError, MeetingPoint
from rl.weight_transfer.shared_memory import SharedMemoryLink


class Link(Protocol):
    """One sender, and receivers that all get the same."""

    def sending(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        """A buffer of bytes on the device for each size, sent when the next one is asked for.

        Raises:
            LinkError: a receiver is gone or did not keep up.
        """

    def receiving(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        """The buffers that were sent; one may be read until the next is asked for.

        Raises:
            LinkError: the sender or another receiver is gone.
        """

    def abort(self) -> None:
        """Fail everybody's transfer, this member's included; from any thread."""


def listen(host: str) -> socket.socket:
    """Where a link's members will meet, on this address alone; hand it to `open_link`."""
    return socket.create_server((host, 0))


def open_link(point: MeetingPoint, member: int, device: torch.device, listening: socket.socket | None = None) -> Link:
    """Meet the others.

    Args:
        listening: of member 0, see `listen`.
    Raises:
        LinkError: they did not come in time.
    """
    try:
        store = _store(point, listening)
        link = SharedMemoryLink if point.transport == "ipc" else BroadcastLink
        return link(store, point, member, device)
    except (RuntimeError, OSError) as error:
        raise LinkError(f"the members of the link over {point.transport} did not meet: {error}") from error


def _store(point: MeetingPoint, listening: socket.socket | None) -> dist.TCPStore:
    return dist.TCPStore(
        point.host,
        point.port,
        is_master=listening is not None,
        timeout=timedelta(seconds=point.timeout_s),
        wait_for_workers=False,
        master_listen_fd=listening.detach() if listening else None,
    )
