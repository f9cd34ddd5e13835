"""P2: a thousand watchers of one job while its engine sends durable events."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import psutil
from clips import make_clip
from common import cpu_s, p99
from places import deployed
from rows import Effort, Figure, Place, at_most, rows_in
from talker import Talkers
from watching import watching

from faceswap.client import FaceSwap
from faceswap.samples import FACE

STREAMS, SOCKETS = 800, 200
RATES = (4, 25)
FULL_RATE = 25
"""The events a second that the goals are for."""
WINDOW_S, WARM_UP_S = 4.0, 3.0
TAIL_S = 1.0
"""The time that the last events of a window have to arrive."""


async def submit_until_held(client: FaceSwap, clip: Path) -> str:
    """Submit a job and wait until an engine has begun with it; returns its id."""
    prompt_id = await client.submit(clip, FACE)
    async for event in client.events(prompt_id):
        assert event.type != "error", event.data
        if event.type == "executing":
            break
    return prompt_id


async def measure_rate(place: Place, folder: Path, rate: float, effort: Effort) -> list[Figure]:
    """Return the figures of a rate of events."""
    folder.mkdir()
    streams, sockets = effort.of(STREAMS), effort.of(SOCKETS)
    async with Talkers(folder / "talkers") as talkers, deployed(place, folder, *talkers.urls) as nodes:
        service = nodes.asked
        async with FaceSwap(service.url) as client:
            prompt_id = await submit_until_held(client, make_clip(folder / "clip.mp4", 24))
        before = psutil.Process(service.pid).memory_info().rss
        targets = [f"stream {service.url} {prompt_id}"] * streams + [f"socket {service.url} {prompt_id}"] * sockets
        async with watching(folder / "targets", targets) as take:
            memory = psutil.Process(service.pid).memory_info().rss - before
            cpu, seen = [], []
            async with talkers.talking(rate):
                await asyncio.sleep(WARM_UP_S)
                for _ in range(effort.rounds):
                    await take()
                    started, used = time.monotonic(), cpu_s(service.pid, children=False)
                    await asyncio.sleep(WINDOW_S)
                    cpu.append((cpu_s(service.pid, children=False) - used) / (time.monotonic() - started) * 100)
                    await asyncio.sleep(TAIL_S)
                    seen.append(await take())
    lags = [each["lag_ms"] for each in seen]
    # The first and the last ticks of a window may be cut by its ends.
    missed = [sum(count < streams + sockets for count in each["watchers"][2:-2]) for each in seen]
    counts = rate == FULL_RATE
    name = f"{rate} events/s"
    return [
        Figure(f"{name}, CPU", "% of a core", cpu, goal=at_most(25) if counts else None),
        Figure(f"{name}, last watcher", "p50 ms", [statistics.median(lag) for lag in lags]),
        Figure(f"{name}, last watcher", "p99 ms", [p99(lag) for lag in lags], goal=at_most(15) if counts else None),
        Figure(f"{name}, arrived", "events/s", [len(lag) / (WINDOW_S + TAIL_S) for lag in lags]),
        Figure(f"{name}, memory", "KB a watcher", [memory / 1024 / (streams + sockets)], goal=at_most(20)),
        Figure(f"{name}, not at every watcher", "events", missed, goal=at_most(0), by_worst=True),
    ]


async def measure_row(place: Place, folder: Path, effort: Effort) -> list[Figure]:
    """Measure at each rate."""
    return [figure for rate in RATES for figure in await measure_rate(place, folder / str(rate), rate, effort)]


ROWS = rows_in("P2", f"one job, {STREAMS} event streams and {SOCKETS} WebSockets", measure_row)
