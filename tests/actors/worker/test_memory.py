"""What counts as a worker's own memory."""

import mmap

import pytest

from actors.worker.memory import own_memory_mib

SIZE_MIB = 64


def test_memory_that_a_process_writes_to_is_its_own():
    before = own_memory_mib()
    held = bytearray(b"\1") * (SIZE_MIB << 20)
    assert own_memory_mib() - before == pytest.approx(SIZE_MIB, abs=4)
    del held


def test_shared_pages_such_as_the_object_store_are_not():
    before = own_memory_mib()
    with mmap.mmap(-1, SIZE_MIB << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as shared:
        shared[:] = b"\1" * len(shared)
        assert own_memory_mib() - before < 4
