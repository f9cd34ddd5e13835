"""Waiting in tests: for a condition, with a bound that only a hang reaches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_S = float(os.environ.get("WAIT_S", "120"))
"""The longest any wait in a test may take. An idle machine needs a hundredth of it; a busy one is not in a hurry.

`make mutate`, where waiting in vain is what is expected, has less patience.
"""
POLL_S = 0.02


async def eventually(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until a condition holds; returns what it gave."""
    async with asyncio.timeout(WAIT_S):
        while not (result := await condition()):
            await asyncio.sleep(POLL_S)
        return result


async def until(condition: Callable[[], Any]) -> Any:
    """Wait as `eventually`, for a condition that need not be awaited."""
    async with asyncio.timeout(WAIT_S):
        while not (result := condition()):
            await asyncio.sleep(POLL_S)
        return result
