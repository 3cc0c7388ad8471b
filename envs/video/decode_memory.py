"""How much memory a decoding process may use, uses, and came to use at most.

Limited is what a process can write to and shares with nobody (RLIMIT_DATA): of a decoder this is within some MiB of
what it occupies. The address space (RLIMIT_AS) counts 140 MiB of libraries more. What a process holds before its first
request is not counted: OpenBLAS alone takes 32 or 64 MiB, as the processor is.
"""

from __future__ import annotations

import resource
from pathlib import Path

KIB = 1024
MIB = 2**20


def data_bytes() -> int:
    """What this process has now of what `limit_data` limits."""
    return _status("self")["VmData"] * KIB


def limit_data(num_bytes: int) -> None:
    """From here on, this process gets that much more, or what it was allowed before: what needs more fails in it."""
    num_bytes += data_bytes()
    _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
    num_bytes = num_bytes if allowed == resource.RLIM_INFINITY else min(num_bytes, allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def peak_data_bytes() -> int:
    """The most this process had of what `limit_data` limits. The kernel keeps the peak of the address space only; the
    rest of it is libraries, which stay."""
    kib = _status("self")
    return (kib["VmPeak"] - kib["VmSize"] + kib["VmData"]) * KIB


def resident_bytes(pid: int) -> int:
    """What a process occupies now; 0 of one that is gone."""
    try:
        return _status(str(pid)).get("VmRSS", 0) * KIB
    except OSError:
        return 0


def _status(pid: str) -> dict[str, int]:
    """The kernel's figures of a process that are in KiB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
