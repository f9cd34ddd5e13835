"""P5: the worst answers to others during an upload, during a fetch from ComfyUI, and while ComfyUI is slow."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from asking import ask as ask_once
from asking import get
from clips import make_clip, padded
from common import HERE, MODULE_PATHS, answer, call, calling
from jobs import submit_and_watch
from processes import Child, Engine, Service
from rows import Effort, Figure, Row, at_most
from transfers import post_job, put
from yarl import URL

from faceswap.client import FaceSwap
from faceswap.samples import FACE

SIZE_BYTES = 2**30
PAUSE_S = 0.005
"""Between two questions of the others."""
SLOW_S, WINDOW_S = 3.0, 4.0
GOAL_MS = 50


def ask(url: str, path: str) -> list[float]:
    """Ask for a page over and over until standard input says something; returns the ms that each answer took."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=wait).start()
    return asyncio.run(_ask_until(ended, URL(url), path))


async def _ask_until(ended: threading.Event, url: URL, path: str) -> list[float]:
    question, times = [[get(url, path)]], list[float]()
    await ask_once(url, question)
    sys.stdout.write("asking\n")
    sys.stdout.flush()
    while not ended.is_set():
        times += (await ask_once(url, question)).times_ms
        await asyncio.sleep(PAUSE_S)
    return times


@asynccontextmanager
async def others(url: str, *paths: str) -> AsyncIterator[dict[str, list[float]]]:
    """Ask for pages from processes of their own meanwhile; the ms that each answer took are there afterwards."""
    times: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        asking = {path: await stack.enter_async_context(calling(ask, url, path)) for path in paths}
        for process in asking.values():
            assert process.stdout is not None
            assert await process.stdout.readline() == b"asking\n"
        yield times
        for path, process in asking.items():
            times[path] = await answer(process)


class Worst:
    """The worst answers of some rounds, and the middle ones."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rounds: list[list[float]] = []

    @asynccontextmanager
    async def round(self, url: str, *paths: str) -> AsyncIterator[None]:
        """Ask for pages meanwhile, each from a process of its own."""
        async with others(url, *paths) as times:
            yield
        self._rounds.append([one for each in times.values() for one in each])

    def figures(self, *, has_goal: bool = True) -> list[Figure]:
        """Return the figures of all rounds; the worst of all is held against the goal."""
        worst = [max(times) for times in self._rounds]
        middle = [statistics.median(times) for times in self._rounds]
        return [
            Figure(self._name, "worst ms", worst, goal=at_most(GOAL_MS) if has_goal else None, by_worst=True),
            Figure(self._name, "median ms", middle),
        ]


async def upload(service: Service, video: Path) -> None:
    """Submit a job in one request and cancel it."""
    _, body = await call(post_job, service.url, str(video), str(FACE))
    async with FaceSwap(service.url) as client:
        await client.cancel(json.loads(body)["prompt_id"])


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Ask in quiet and during each of the three; and of a bare server, while a bare handler takes as much in."""
    size = effort.of(SIZE_BYTES, 2**20)
    video, small = padded(folder / "big.mp4", size), make_clip(folder / "small.mp4", 24)
    quiet, uploading, fetching, slow, bare = (
        Worst(name)
        for name in ("nothing goes on", "upload", "fetch from ComfyUI", "ComfyUI is slow", "a bare server, upload")
    )
    window_s = WINDOW_S * effort.share
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        FaceSwap(service.url) as client,
        Child(folder / "bare.log", "bare", str(folder), "{}", cwd=HERE) as limit,
    ):
        done = await submit_and_watch(client, small)
        for _ in range(effort.rounds):
            async with quiet.round(service.url, "/health", f"/status/{done}"):
                await asyncio.sleep(window_s / 2)
            async with uploading.round(service.url, "/health", f"/status/{done}"):
                await upload(service, video)
            async with bare.round(limit.url, "/json", "/json?again"):
                await call(put, f"{limit.url}/hashed", str(video))
        await engine.set_faults(http_delay_s=SLOW_S, paint=True)
        prompt_id = await client.submit(small, FACE)
        for _ in range(effort.rounds):
            async with slow.round(service.url, "/health", f"/status/{prompt_id}"):
                await asyncio.sleep(window_s)
    command = ("giant", str(folder / "giant"), str(size))
    giant = Child(folder / "giant.log", *command, cwd=HERE, env={"PYTHONPATH": MODULE_PATHS})
    async with giant, Service(folder / "fetching", giant.url) as service, FaceSwap(service.url) as client:
        done = await submit_and_watch(client, small)
        for _ in range(effort.rounds):
            async with fetching.round(service.url, "/health", f"/status/{done}"):
                await submit_and_watch(client, small)
    ours = [figure for each in (uploading, fetching, slow, quiet) for figure in each.figures()]
    return [*ours, *bare.figures(has_goal=False)]


ROWS = (Row("P5", f"answers of `/health` and `/status` to others who ask every {PAUSE_S * 1000:.0f} ms", measure_row),)
