"""The address, and the network interface, by which this machine talks to another.

Never by its host's name: many systems resolve that to a loopback address, under which no other machine finds this one.
"""

from __future__ import annotations

import socket

import psutil


def own_address(host: str, port: int) -> str:
    """The IPv4 address of this machine from which it talks to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


def own_interface(host: str, port: int) -> str:
    """The name of the interface that has that address; empty where none says so."""
    own = own_address(host, port)
    return next(
        (name for name, held in psutil.net_if_addrs().items() if any(each.address == own for each in held)),
        "",
    )
