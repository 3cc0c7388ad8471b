"""Handles of shared memory: text that says where it lies, and nothing that could run."""

import json

import pytest
import torch

from rl.weight_transfer.shared_buffer import SharedBuffer, cuda_arguments, open_shared, rebuilding_arguments

CPU = torch.device("cpu")


def test_what_one_process_writes_another_reads():
    buffer = SharedBuffer(8, CPU)
    opened = open_shared(buffer.handle, CPU)
    buffer.bytes.copy_(torch.arange(8, dtype=torch.uint8))
    assert opened.tolist() == list(range(8))
    buffer.close()


def test_memory_of_another_node_is_refused():
    with pytest.raises(OSError, match="another node or GPU"):
        open_shared(json.dumps(["elsewhere", 8, [1, 1]]), CPU)


def test_what_rebuilds_a_cuda_tensor_travels_as_text():
    """The arguments as torch 2.13 has them; classes and types are the receiver's own."""
    sent = (torch.Tensor, torch.Size([8]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 3)
    sent = (*sent, b"\x00handle", 8, 0, False, b"counter", 0, b"event", True)

    received = rebuilding_arguments(json.loads(json.dumps(cuda_arguments(sent))), torch.device("cuda", 1))

    assert received == [*sent[:6], 1, *sent[7:]]
