"""Ports on the loopback interface."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def any_free() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def preferred(port: int, taken: set[int]) -> int:
    """The port itself if it is free, else another one; it is added to `taken`."""
    if port in taken or not is_free(port):
        return another(taken)
    taken.add(port)
    return port


def another(taken: set[int]) -> int:
    """A port that is free and not in `taken`; it is added to it."""
    chosen = any_free()
    while chosen in taken:
        chosen = any_free()
    taken.add(chosen)
    return chosen
