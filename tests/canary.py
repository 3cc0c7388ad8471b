"""Secrets of an environment that must be found nowhere, and who listens where."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import psutil

CANARY = "canary-2f9d1c7e"
SECRETS = {
    name: f"{CANARY}-{name}"
    for name in (
        *("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "GOOGLE_API_KEY", "OPENAI_API_KEY", "DATABASE_URL", "MY_PASSWORD"),
    )
}


def holding_a_secret(*folders: Path) -> list[str]:
    """Files under the folders in which the canary stands."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


def sockets_of(pid: int) -> dict[tuple[str, int], str]:
    """Who of a process and all it has started listens where: (address, port) -> name."""
    found = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        try:
            sockets = [s for s in process.net_connections("inet") if s.status == psutil.CONN_LISTEN]
            found |= {tuple(socket.laddr): process.name() for socket in sockets}
        except psutil.Error:
            continue
    return found


def is_loopback(address: str) -> bool:
    """Of this machine alone, as IPv4, IPv6 or one inside the other."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
