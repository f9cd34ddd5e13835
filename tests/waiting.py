"""Waiting in tests: for a condition, with a bound that only a hang reaches."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_S = float(os.environ.get("WAIT_S", "120"))
"""The longest any wait in a test may take. An idle machine needs a hundredth of it; a busy one is not in a hurry.

`make mutate`, where waiting in vain is what is expected, has less patience.
"""
POLL_S = 0.02
LATER = 0.1
"""The share of the time waited that may pass until the next look: a busy machine has better to do than to look."""


async def eventually(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until a condition holds; returns what it gave."""
    started = time.monotonic()
    async with asyncio.timeout(WAIT_S):
        while not (result := await condition()):
            await asyncio.sleep(max(POLL_S, LATER * (time.monotonic() - started)))
        return result


async def until(condition: Callable[[], Any]) -> Any:
    """Wait as `eventually`, for a condition that need not be awaited."""
    async with asyncio.timeout(WAIT_S):
        while not (result := condition()):
            await asyncio.sleep(POLL_S)
        return result
