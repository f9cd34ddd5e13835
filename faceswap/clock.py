"""The one clock that waits and deadlines are measured by."""

from __future__ import annotations

import asyncio


def monotonic() -> float:
    """Return the running event loop's time in seconds: it never jumps, and a simulation has its own."""
    return asyncio.get_running_loop().time()
