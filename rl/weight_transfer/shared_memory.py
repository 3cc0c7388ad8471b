"""A link over memory of the sender that receivers beside it read where it lies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rl.weight_transfer.meeting import LinkError, MeetingPoint
from rl.weight_transfer.shared_buffer import Handle, SharedBuffer, open_shared
from rl.weight_transfer.watch import Watch


class SharedMemoryLink:
    """Two buffers of the sender that receivers on the same node, or the same GPU, read where they lie."""

    def __init__(self, store: dist.TCPStore, point: MeetingPoint, member: int, device: torch.device) -> None:
        self._watch = Watch(point, self._tear)
        self._store, self._device, self._receivers = store, device, point.members - 1
        self._buffers: list[SharedBuffer] = []
        self._opened: dict[Handle, Tensor] = {}
        self._uses = 0
        self._meet(member)

    def sending(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        with self._watch.transfer():
            use = self._next_use()
            self._make_room(sizes)
            self._store.set(f"{use}/buffers", json.dumps([buffer.handle for buffer in self._buffers]))
            for turn, size in enumerate(sizes):
                if turn >= 2:
                    self._wait(f"{use}/read {turn - 2}")
                yield self._buffer(turn, size)
                self._finish_device()
                self._store.set(f"{use}/sent {turn}", b"")
            for turn in range(len(sizes))[-2:]:
                self._wait(f"{use}/read {turn}")

    def receiving(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        with self._watch.transfer():
            use = self._next_use()
            self._wait(f"{use}/buffers")
            handles: list[Handle] = json.loads(self._store.get(f"{use}/buffers"))
            opened = {handle: self._opened[handle] for handle in handles if handle in self._opened}
            for handle in handles:
                if handle not in opened:
                    opened[handle] = open_shared(handle, self._device)
            self._opened = opened  # the others are let go of
            for turn, size in enumerate(sizes):
                self._wait(f"{use}/sent {turn}")
                yield self._opened[handles[turn % 2]][:size]
                self._finish_device()
                if self._store.add(f"{use}/readers {turn}", 1) == self._receivers:
                    self._store.set(f"{use}/read {turn}", b"")

    def abort(self) -> None:
        self._watch.fail()

    def _buffer(self, turn: int, size: int) -> Tensor:
        for buffer in self._buffers[turn % 2 :]:
            return buffer.bytes[:size]
        raise LinkError("the link is torn")

    def _tear(self) -> None:
        """The memory is free as soon as nobody reads it: a descriptor would keep it."""
        buffers, self._buffers, self._opened = self._buffers, [], {}
        for buffer in buffers:
            buffer.close()

    def _wait(self, key: str) -> None:
        self._watch.wait(lambda: self._store.check([key]))

    def _meet(self, member: int) -> None:
        if member and self._store.add("joined", 1) == self._receivers:
            self._store.set("all joined", b"")
        if not member:
            self._store.wait(["all joined"])

    def _make_room(self, sizes: Sequence[int]) -> None:
        for index in range(2):
            size = max(sizes[index::2], default=1)
            if index < len(self._buffers) and size > len(self._buffers[index]):
                self._buffers[index].close()
                self._buffers[index] = SharedBuffer(size, self._device)
            elif index == len(self._buffers):
                self._buffers.append(SharedBuffer(size, self._device))

    def _next_use(self) -> int:
        self._uses += 1
        return self._uses

    def _finish_device(self) -> None:
        """What was queued on a GPU is done before another process is told so."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
