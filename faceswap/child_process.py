"""Child processes ended in a bounded time, without taking their exit status from asyncio.

`terminate` and `kill` of asyncio's own would reap a child that has just ended, so that asyncio never hears of its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from contextlib import suppress


def terminate(pid: int) -> None:
    """Ask a child to end. Does nothing when it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def kill_group(pid: int) -> None:
    """Kill a child that leads a session of its own, and its children."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def wait_within(seconds: float, awaitable: Awaitable[object]) -> None:
    """Wait for something, at most so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await awaitable
