"""P11: the service and its embedded engine with nothing to do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
from common import cpu_s
from processes import Service
from rows import Effort, Figure, Row, at_most
from start import seconds_to_ready

SETTLE_S, WINDOW_S = 2.0, 8.0


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Start, wait, and look."""
    ready, memory, engine_memory, cpu = [], [], [], []
    for number in range(effort.rounds):
        service = Service(folder / str(number))
        try:
            ready.append(await seconds_to_ready(service))
            await asyncio.sleep(SETTLE_S)
            started, before = time.monotonic(), cpu_s(service.pid)
            await asyncio.sleep(WINDOW_S * effort.share)
            cpu.append((cpu_s(service.pid) - before) / (time.monotonic() - started) * 100)
            memory.append(service.memory_mb())
            children = psutil.Process(service.pid).children(recursive=True)
            engine_memory.append(sum(child.memory_info().rss for child in children) / 2**20)
        finally:
            await service.stop()
    return [
        Figure("service", "MiB", memory, goal=at_most(70)),
        Figure("engine", "MiB", engine_memory),
        Figure("both", "% of a core", cpu, goal=at_most(1)),
        Figure("ready after", "seconds", ready, goal=at_most(2)),
    ]


ROWS = (Row("P11", "idle with the embedded engine", measure_row),)
