"""P8: the time of a start with 100,000 ended and 1,000 waiting jobs, against a start with one; `/status` in both."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import aiohttp
from asking import ask, get
from clips import make_clip
from places import deployed
from processes import Engine, Service
from rows import Effort, Figure, Place, at_most, difference, in_turn, ratio, rows_in
from yarl import URL

from faceswap.client import FaceSwap
from faceswap.samples import FACE

ENDED, WAITING = 100_000, 1_000
REQUESTS = 2_000
LOOK_S = 0.005


async def seconds_to_ready(service: Service) -> float:
    """Start a service and return the seconds until it says that it is ready."""
    started = time.perf_counter()
    await service.start()
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{service.url}/readyz") as answer:
                if answer.status == 200:
                    return time.perf_counter() - started
            await asyncio.sleep(LOOK_S)


async def measure(service: Service, prompt_id: str, requests: int) -> tuple[float, float]:
    """Start and stop a service; returns the seconds until it was ready, and `/status` a second on one connection."""
    seconds = await seconds_to_ready(service)
    url = URL(service.url)
    asked = await ask(url, [[get(url, f"/status/{prompt_id}")] * requests])
    await service.stop()
    return seconds, asked.a_second


async def measure_row(place: Place, folder: Path, effort: Effort) -> list[Figure]:
    """Start over a full and over an empty database in turn; the engine is held, so that what waits stays so."""
    clip = make_clip(folder / "clip.mp4", 24)
    async with Engine(folder) as engine, AsyncExitStack() as stack:
        await engine.hold()
        subjects = []
        for name, is_full in (("full", True), ("empty", False)):
            nodes = await stack.enter_async_context(deployed(place, folder / name, engine.url, queue_limit=100_000))
            async with FaceSwap(nodes.asked.url) as client:
                prompt_id = await client.submit(clip, FACE)
            await nodes.stop()
            if is_full:
                nodes.fill(prompt_id, ended=effort.of(ENDED), waiting=effort.of(WAITING))
            for other in nodes.others:
                await other.start()
            subjects.append(partial(measure, nodes.asked, prompt_id, effort.of(REQUESTS)))
        # To fill PostgreSQL takes minutes, and an engine ends that makes no progress for as long.
        await engine.stop()
        await engine.start()
        await engine.hold()
        (ours, speeds), (empty, empty_speeds) = await in_turn(effort.rounds, *subjects)
    return [
        Figure("ready after", "seconds", ours, empty, difference, at_most(0.5)),
        Figure("`/status`, one connection", "requests/s", speeds, empty_speeds, ratio),
    ]


ROWS = rows_in("P8", f"start with {ENDED:,} ended and {WAITING:,} waiting jobs, against a start with one", measure_row)
