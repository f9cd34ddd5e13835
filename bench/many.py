"""Q1 to Q3: jobs on many engines at once, a long queue beside a short one, and engines of which most are idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
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
from faceswap.config import Timeouts
from faceswap.samples import FACE

ENGINES = 150
IDLE, BUSY = 1_000, 200
FRAMES = 6
LONG, SHORT = 20_000, 100
ASKED = 20


@dataclass(frozen=True)
class Many:
    """A service with many engines, which live in this process and only wait."""

    engines: Sequence[EngineRig]
    service: Service
    client: FaceSwap

    async def work_off(self, clip: Path, count: int) -> tuple[float, float, float]:
        """Submit jobs and wait for them all: the share that is done, the seconds, the service's own CPU ms a job."""
        started, before = time.perf_counter(), cpu_s(self.service.pid, children=False)
        jobs = [await self.client.submit(clip, FACE) for _ in range(count)]
        ends = await asyncio.gather(*(_end(self.client, prompt_id) for prompt_id in jobs))
        used_s = cpu_s(self.service.pid, children=False) - before
        return ends.count("completed") / count, time.perf_counter() - started, used_s / count * 1000


@asynccontextmanager
async def many(folder: Path, count: int) -> AsyncIterator[Many]:
    """Start a service with so many engines, and wait until all are connected."""
    folder.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        rigs = [EngineRig(folder / f"engine-{number}", wait_per_frame_s=0.5) for number in range(count)]
        engines = [await stack.enter_async_context(rig) for rig in rigs]
        service = await stack.enter_async_context(Service(folder, *(engine.url for engine in engines)))
        await all_connected(service, count)
        yield Many(engines, service, await stack.enter_async_context(FaceSwap(service.url)))


async def all_at_work(folder: Path, effort: Effort) -> list[Figure]:
    """Submit as many jobs as there are engines."""
    count = effort.of(ENGINES, 2)
    clip = make_clip(folder / "clip.mp4", FRAMES, size=(96, 64), sounds=["aac"])
    async with many(folder / "all", count) as all_:
        done, seconds, cpu = zip(*[await all_.work_off(clip, count) for _ in range(effort.rounds)], strict=True)
        used = sum(engine.submissions > 0 for engine in all_.engines) / count
        prompts = sum(engine.submissions for engine in all_.engines) / count / effort.rounds
    return [
        Figure("jobs done", "share", done, goal=at_least(1.0), by_worst=True),
        Figure("engines used", "share", [used], goal=at_least(1.0)),
        Figure("prompts sent", "for each job", [prompts], goal=at_most(1.0)),
        Figure("all jobs", "seconds", seconds),
        Figure("service's own process", "CPU ms a job", cpu),
    ]


async def most_are_idle(folder: Path, effort: Effort) -> list[Figure]:
    """Submit the same jobs where most engines stay idle, and where all have one, in turn.

    What the engines cost without a job, which is measured first, is not counted as a job's.
    """
    count, busy = effort.of(IDLE, 4), effort.of(BUSY, 2)
    clip = make_clip(folder / "clip.mp4", FRAMES, size=(96, 64), sounds=["aac"])
    async with many(folder / "idle", count) as idle, many(folder / "busy", busy) as none_idle:
        shares = await asyncio.gather(_upkeep(idle, effort), _upkeep(none_idle, effort))
        (done, *of_idle), (_, *of_busy) = await in_turn(
            effort.rounds, partial(idle.work_off, clip, busy), partial(none_idle.work_off, clip, busy)
        )
    cpu, busy_cpu = (
        [used - share * seconds * 1000 / busy for seconds, used in zip(*found, strict=True)]
        for share, found in zip(shares, (of_idle, of_busy), strict=True)
    )
    return [
        Figure("jobs done", "share", done, goal=at_least(1.0), by_worst=True),
        Figure("service's own process", "CPU ms a job", cpu, busy_cpu, ratio, at_most(1.2)),
        Figure("without a job", "% of a core", [share * 100 for share in shares[:1]]),
    ]


async def _upkeep(subject: Many, effort: Effort) -> float:
    """Return the CPU seconds a second of a service without a job, while it looks at each engine once."""
    started, before = time.perf_counter(), cpu_s(subject.service.pid, children=False)
    await asyncio.sleep(effort.of(Timeouts().inspect_s))
    return (cpu_s(subject.service.pid, children=False) - before) / (time.perf_counter() - started)


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
    Row("Q1", f"{ENGINES} jobs of one prompt each at once, on as many engines that only wait", all_at_work),
    *rows_in("Q2", f"{LONG:,} jobs that wait, against {SHORT}", long_queue),
    Row("Q3", f"{BUSY} jobs of one prompt each on {IDLE:,} engines, against as many engines as jobs", most_are_idle),
)
