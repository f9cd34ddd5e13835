"""Ports for servers that are started again at the same address."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

PORTS = range(10_000, 32_768)
"""Ports that no system gives away by itself: none is taken between two starts by somebody's connection."""


def free_port() -> int:
    """Return a port of `PORTS` that nobody listens on now."""
    choose = random.SystemRandom()
    while True:
        port = choose.choice(PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
