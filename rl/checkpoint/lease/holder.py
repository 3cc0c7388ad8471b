"""The process that holds a lease: what lease.json says of it, and whether it still runs."""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Holder:
    """What lease.json says of the process that writes."""

    owner: str  # a new one for each start
    host: str
    machine: str  # boot and process namespace: where `process_id` means something; "" if that cannot be known
    process_id: int
    process_started: str  # tells it from a later process with that number
    job: str  # such as "Ray job raysubmit_…"; "" outside a job
    stop: str  # the command that stops it
    started_s: float  # seconds since the epoch, by the holder's clock
    heartbeat_s: float  # likewise
    beats: int = 0  # so that every heartbeat changes the text

    def __str__(self) -> str:
        job = f" ({self.job})" if self.job else ""
        return f"process {self.process_id} on {self.host}{job}"


def this_process(job: str = "", stop: str = "") -> Holder:
    """This process as the holder of a lease.

    Args:
        job: that it is the driver of.
        stop: the command that stops the job; empty: `kill` with the process's number.
    """
    process_id = os.getpid()
    return Holder(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        process_id=process_id,
        process_started=process_start(process_id) or "",
        job=job,
        stop=stop or f"kill {process_id}",
        started_s=0.0,
        heartbeat_s=0.0,
    )


def process_start(process_id: int) -> str | None:
    """When a process of this machine started, as a text to compare; None: it has ended."""
    try:
        process = psutil.Process(process_id)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        statistics = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
        return statistics.rpartition(")")[2].split()[19]  # ticks since boot: no clock that is set changes them
    except psutil.NoSuchProcess:
        return None
    except OSError:  # not Linux
        return f"{process.create_time():.0f}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def holder_text(holder: Holder) -> bytes:
    """A holder as it stands in lease.json."""
    return (json.dumps(asdict(holder), indent=1) + "\n").encode()


def read_holder(text: bytes | None) -> Holder | None:
    """The holder in a lease's text; None: nothing, or nothing that could be a lease, such as half of one."""
    try:
        fields: dict[str, Any] = json.loads(text or b"")
        holder = Holder(**fields)
        numbers = (holder.process_id, holder.started_s, holder.heartbeat_s)
        return holder if all(isinstance(number, int | float) for number in numbers) else None
    except (TypeError, ValueError):
        return None
