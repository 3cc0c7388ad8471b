"""A link over a process group of its own: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from rl.own_address import own_address
from rl.weight_transfer.meeting import LinkError, MeetingPoint
from rl.weight_transfer.watch import Watch

NCCL_ERRORS, CLEAN_UP_ONLY = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "2"


class BroadcastLink:
    """The sender broadcasts, receivers have buffers of their own."""

    def __init__(self, store: dist.TCPStore, point: MeetingPoint, member: int, device: torch.device) -> None:
        self._watch = Watch(point, self._tear)
        self._device = device
        self._held = [_process_group(dist.PrefixStore("group", store), point, member)]  # empty once it is torn
        self._buffers = [torch.empty(0, dtype=torch.uint8, device=device)] * 2

    def sending(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        with self._watch.transfer():
            self._make_room(sizes)
            sent: list[dist.Work] = []
            for turn, size in enumerate(sizes):
                if turn >= 2:
                    self._finish(sent[turn - 2])
                buffer = self._buffer(turn, size)
                yield buffer
                sent.append(self._broadcast(buffer))
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
        buffer = self._buffer(turn, size)
        return buffer, self._broadcast(buffer)

    def _buffer(self, turn: int, size: int) -> Tensor:
        for buffer in self._buffers[turn % 2 :]:
            return buffer[:size]
        raise LinkError("the link is torn")

    def _broadcast(self, buffer: Tensor) -> dist.Work:
        for group in self._held:
            return group.broadcast(buffer, 0)
        raise LinkError("the link is torn")

    def _make_room(self, sizes: Sequence[int]) -> None:
        """The largest parameter may be as large as all others together: it has room in one buffer, not in both."""
        for index, buffer in enumerate(self._buffers):
            if (size := max(sizes[index::2], default=0)) > len(buffer):
                self._buffers[index] = buffer.new_empty(size)

    def _finish(self, work: dist.Work) -> None:
        self._watch.wait(work.is_completed)
        work.wait()  # raises what went wrong

    def _tear(self) -> None:
        """What is under way over NCCL ends at once; gloo's threads end at the timeout, and nobody waits for them.

        The buffers are free as soon as nobody reads them.
        """
        held, self._held, self._buffers = self._held, [], []
        for group in held:
            group.abort()
        del group  # nobody but that thread has it any more
        threading.Thread(target=held.clear, name="link", daemon=True).start()


@contextmanager
def _errors_end_no_process() -> Iterator[None]:
    """A group over NCCL that is made within aborts its communicators where it fails; torch's default ends the process.

    The group's constructor reads that from the environment (ProcessGroupNCCL.hpp, CleanUpOnly). DeepSpeed's groups keep
    the default: a rank that goes on alone after a failed collective would learn something else.
    """
    before = os.environ.get(NCCL_ERRORS)
    os.environ[NCCL_ERRORS] = CLEAN_UP_ONLY
    try:
        yield
    finally:
        del os.environ[NCCL_ERRORS]
        if before is not None:
            os.environ[NCCL_ERRORS] = before


def _process_group(store: dist.Store, point: MeetingPoint, member: int) -> dist.ProcessGroup:
    timeout = timedelta(seconds=point.timeout_s)
    if point.transport == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        with _errors_end_no_process():
            return dist.ProcessGroupNCCL(store, member, point.members, options)
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address(point.host, point.port))]
    return dist.ProcessGroupGloo(store, member, point.members, options)
