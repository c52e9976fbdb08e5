"""Ports for servers of the tests."""

from __future__ import annotations

import random
import socket

# Below those that a system hands out to clients (Linux: 32768 and up), above those of Ray's workers (10002 to 19999):
# a port that the system hands out can be a client's of another process before the server takes it.
NOBODYS = range(20_000, 30_000)


def free_port() -> int:
    """A port of loopback that nobody listens at, and that no client gets before the server does."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.SystemRandom().choice(NOBODYS)))
            except OSError:
                continue
            return int(probe.getsockname()[1])
