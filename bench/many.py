"""Many engines, and a long queue: one job on each of 150 engines at once, and pages of 20,000 queued jobs."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import aiohttp
from backends import all_connected
from clips import make_clip
from common import print_table
from processes import Service, dead_url
from service_rig import EngineRig
from stored_jobs import new_job

from faceswap.client import FaceSwap
from faceswap.config import resource_dir
from faceswap.samples import FACE
from faceswap.store import Store

ENGINES = 150
FRAMES = 6
QUEUES = (100, 20_000)
ASKED = 20


async def many_engines(folder: Path) -> None:
    """Submit as many jobs as there are engines and wait for them all; the engines live in this process."""
    clip = make_clip(folder / "clip.mp4", FRAMES, size=(96, 64), sounds=["aac"])
    async with AsyncExitStack() as stack:
        rigs = [EngineRig(folder / f"engine-{number}", wait_per_frame_s=0.5) for number in range(ENGINES)]
        engines = [await stack.enter_async_context(rig) for rig in rigs]
        service = await stack.enter_async_context(Service(folder, *(engine.url for engine in engines)))
        await all_connected(service, ENGINES)
        client = await stack.enter_async_context(FaceSwap(service.url))
        started = time.perf_counter()
        jobs = [await client.submit(clip, FACE) for _ in engines]
        states = await asyncio.gather(*(_end(client, prompt_id) for prompt_id in jobs))
        seconds = time.perf_counter() - started
        used = sum(engine.submissions > 0 for engine in engines)
        prompts = sum(engine.submissions for engine in engines)
    print_table(
        f"{ENGINES} engines that only wait, {ENGINES} jobs of one prompt each, all at once",
        ["SUCCESS", "prompts sent", "engines used", "seconds"],
        [[states.count("completed"), prompts, used, f"{seconds:.0f}"]],
    )


async def _end(client: FaceSwap, prompt_id: str) -> str:
    last = ""
    async for event in client.events(prompt_id):
        last = event.type
    return last


async def long_queue(folder: Path, jobs: int) -> list[object]:
    """Measure the time of a page of many queued jobs, of the last one's status, and of a prompt."""
    folder.mkdir()
    data = folder / "data"
    data.mkdir()
    store = await Store.open(data / "faceswap.db", resource_dir("migrations"), lambda event: None)
    # Durability is not measured. The service below has no ComfyUI that answers: a claimed job would miss its inputs.
    await store._run("PRAGMA synchronous = OFF")
    for number in range(jobs):
        job, _ = await store.create(new_job(output_name=f"job {number}"), jobs + 1)
    await store.close()
    async with (
        Service(folder, dead_url(), queue_limit=jobs + 10) as service,
        aiohttp.ClientSession(service.url) as session,
    ):
        page = await _seconds(session, "/jobs?limit=200")
        status = await _seconds(session, f"/status/{job.prompt_id}")
    return [f"{jobs:,}", f"{page * 1000:.1f}", f"{status * 1000:.2f}"]


async def _seconds(session: aiohttp.ClientSession, path: str) -> float:
    taken = []
    for _ in range(ASKED):
        started = time.perf_counter()
        async with session.get(path) as answer:
            await answer.read()
            assert answer.status == 200
        taken.append(time.perf_counter() - started)
    return median(taken)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="faceswap-bench-") as name:
        folder = Path(name)
        await many_engines(folder)
        rows = [await long_queue(folder / str(jobs), jobs) for jobs in QUEUES]
    print_table("A queue of so many jobs: median ms", ["jobs", "`/jobs?limit=200`", "`/status` of the last"], rows)


if __name__ == "__main__":
    asyncio.run(main())
