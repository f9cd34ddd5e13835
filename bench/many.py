"""Q1 and Q2: jobs on many engines at once, and a long queue beside a short one."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median

import aiohttp
from clips import make_clip
from common import cpu_s
from places import all_connected, deployed
from processes import Engine, Service
from rows import Effort, Figure, Place, Row, at_least, at_most, in_turn, ratio, rows_in
from service_rig import EngineRig

from faceswap.client import FaceSwap
from faceswap.samples import FACE

ENGINES = 150
FRAMES = 6
LONG, SHORT = 20_000, 100
ASKED = 20


async def many_engines(folder: Path, effort: Effort) -> list[Figure]:
    """Submit as many jobs as there are engines and wait for them all; the engines live in this process."""
    count = effort.of(ENGINES, 2)
    clip = make_clip(folder / "clip.mp4", FRAMES, size=(96, 64), sounds=["aac"])
    done, seconds, cpu = [], [], []
    async with AsyncExitStack() as stack:
        rigs = [EngineRig(folder / f"engine-{number}", wait_per_frame_s=0.5) for number in range(count)]
        engines = [await stack.enter_async_context(rig) for rig in rigs]
        service = await stack.enter_async_context(Service(folder, *(engine.url for engine in engines)))
        await all_connected(service, count)
        client = await stack.enter_async_context(FaceSwap(service.url))
        for _ in range(effort.rounds):
            started, before = time.perf_counter(), cpu_s(service.pid, children=False)
            jobs = [await client.submit(clip, FACE) for _ in engines]
            ends = await asyncio.gather(*(_end(client, prompt_id) for prompt_id in jobs))
            seconds.append(time.perf_counter() - started)
            cpu.append((cpu_s(service.pid, children=False) - before) / count * 1000)
            done.append(ends.count("completed") / count)
        used = sum(engine.submissions > 0 for engine in engines) / count
        prompts = sum(engine.submissions for engine in engines) / count / effort.rounds
    return [
        Figure("jobs done", "share", done, goal=at_least(1.0), by_worst=True),
        Figure("engines used", "share", [used], goal=at_least(1.0)),
        Figure("prompts sent", "for each job", [prompts], goal=at_most(1.0)),
        Figure("all jobs", "seconds", seconds),
        Figure("service's own process", "CPU ms a job", cpu),
    ]


async def _end(client: FaceSwap, prompt_id: str) -> str:
    last = ""
    async for event in client.events(prompt_id):
        last = event.type
    return last


async def ask_queue(url: str, last: str) -> tuple[float, float]:
    """Return the median ms of a page of the jobs, and of the status of the last in the queue."""
    async with aiohttp.ClientSession(url) as session:
        return await _median_ms(session, "/jobs?limit=200"), await _median_ms(session, f"/status/{last}")


async def _median_ms(session: aiohttp.ClientSession, path: str) -> float:
    taken = []
    for _ in range(ASKED):
        started = time.perf_counter()
        async with session.get(path) as answer:
            await answer.read()
            assert answer.status == 200
        taken.append((time.perf_counter() - started) * 1000)
    return median(taken)


async def long_queue(place: Place, folder: Path, effort: Effort) -> list[Figure]:
    """Ask where many jobs wait and where few do in turn; the engine is held, so that they stay."""
    clip = make_clip(folder / "clip.mp4", 2, size=(96, 64))
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(folder))
        await engine.hold()
        subjects = []
        for jobs in (effort.of(LONG, SHORT), SHORT):
            home = folder / str(jobs)
            nodes = await stack.enter_async_context(deployed(place, home, engine.url, queue_limit=2 * LONG))
            async with FaceSwap(nodes.asked.url) as client:
                prompt_id = await client.submit(clip, FACE)
            await nodes.stop()
            nodes.fill(prompt_id, waiting=jobs)
            await nodes.start()
            async with FaceSwap(nodes.asked.url) as client:
                last = await client.submit(clip, FACE)
            subjects.append(partial(ask_queue, nodes.asked.url, last))
        (pages, statuses), (short_pages, short_statuses) = await in_turn(effort.rounds, *subjects)
    return [
        Figure("`/jobs?limit=200`", "ms", pages, short_pages, ratio),
        Figure("`/status` of the last", "ms", statuses, short_statuses, ratio, at_most(1.5)),
    ]


ROWS = (
    Row("Q1", f"{ENGINES} jobs of one prompt each at once, on as many engines that only wait", many_engines),
    *rows_in("Q2", f"{LONG:,} jobs that wait, against {SHORT}", long_queue),
)
