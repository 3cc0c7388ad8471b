"""A port that is free, and stays so until somebody listens on it."""

from __future__ import annotations

import socket


def reserve_port() -> socket.socket:
    """Bind a free port: no other process is given it while the socket is open, one with SO_REUSEADDR may listen."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved
