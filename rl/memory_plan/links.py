"""What links from learners to engines take: weights go through two buffers, from device to device.

The first push makes them, on the device or, between CPUs, in the process; they stay until the link is given up. Over
gloo and NCCL receivers have two of their own (rl.weight_transfer.broadcast), over shared memory they read the sender's
(rl.weight_transfer.shared_memory). Through the object store there is none.

Legend: b bytes of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl.config.learner import OBJECT_STORE
from rl.config.run import RunConfig, weight_transport
from rl.policy.structure import Structure


@dataclass(frozen=True, slots=True)
class LinkMemory:
    """Bytes of one member of a link."""

    sender: float = 0.0  # a learner rank: of gloo and NCCL the first one, of shared memory each with engines beside it
    receiver: float = 0.0  # a worker of an engine


def link_memory(config: RunConfig, structure: Structure, itemsize: int) -> LinkMemory:
    """Of the transport that the run takes.

    Args:
        itemsize: b.
    """
    transport = weight_transport(config)
    if transport == OBJECT_STORE:
        return LinkMemory()
    buffers = _buffers(config.weight_sync.bucket_bytes, structure, itemsize)
    return LinkMemory(buffers, 0.0 if transport == "ipc" else buffers)


def _buffers(bucket_bytes: int, structure: Structure, itemsize: int) -> float:
    """Buckets take turns in two buffers. One is full when a parameter has filled it, and holds all of that: the
    embeddings in one of the buffers and, where it has a weight of its own, the head in the other."""
    language, tower = structure.language, structure.tower
    largest = max(language.hidden * language.intermediate, tower.merged**2)
    other = largest if language.is_tied else language.embedding
    return 2.0 * bucket_bytes + (language.embedding + other) * itemsize
