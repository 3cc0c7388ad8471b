"""A link over a process group of its own: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from rl.weight_transfer.watch import MeetingPoint, Watch


class BroadcastLink:
    """The sender broadcasts, receivers have buffers of their own."""

    def __init__(self, store: dist.TCPStore, point: MeetingPoint, member: int, device: torch.device) -> None:
        self._watch = Watch(point, self._tear)
        self._device = device
        self._group = _process_group(dist.PrefixStore("group", store), point, member)
        self._buffers = [torch.empty(0, dtype=torch.uint8, device=device)] * 2

    def sending(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        with self._watch.transfer():
            self._make_room(sizes)
            sent: list[dist.Work] = []
            for turn, size in enumerate(sizes):
                if turn >= 2:
                    self._finish(sent[turn - 2])
                buffer = self._buffers[turn % 2][:size]
                yield buffer
                sent.append(self._group.broadcast(buffer, 0))
            for work in sent[-2:]:
                self._finish(work)

    def receiving(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        with self._watch.transfer():
            self._make_room(sizes)
            coming = [self._receive(turn, size) for turn, size in enumerate(sizes[:1])]
            for turn in range(len(sizes)):
                if turn + 1 < len(sizes):
                    coming.append(self._receive(turn + 1, sizes[turn + 1]))
                buffer, work = coming.pop(0)
                self._finish(work)
                yield buffer

    def abort(self) -> None:
        self._watch.fail()

    def _receive(self, turn: int, size: int) -> tuple[Tensor, dist.Work]:
        buffer = self._buffers[turn % 2][:size]
        return buffer, self._group.broadcast(buffer, 0)

    def _make_room(self, sizes: Sequence[int]) -> None:
        """The largest parameter may be as large as all others together: it has room in one buffer, not in both."""
        for index, buffer in enumerate(self._buffers):
            if (size := max(sizes[index::2], default=0)) > len(buffer):
                self._buffers[index] = buffer.new_empty(size)

    def _finish(self, work: dist.Work) -> None:
        self._watch.wait(work.is_completed)
        work.wait()  # raises what went wrong

    def _tear(self) -> None:
        """What is under way over NCCL ends at once; gloo's threads end at the timeout, and nobody waits for them."""
        self._group.abort()
        threading.Thread(target=[self._group].clear, name="link", daemon=True).start()


def own_address(host: str, port: int) -> str:
    """The address of this machine from which it talks to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


def _process_group(store: dist.Store, point: MeetingPoint, member: int) -> dist.ProcessGroup:
    timeout = timedelta(seconds=point.timeout_s)
    if point.transport == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, member, point.members, options)
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address(point.host, point.port))]
    return dist.ProcessGroupGloo(store, member, point.members, options)
