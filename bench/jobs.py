"""Tiny jobs from 32 clients at once on an engine that takes no time: jobs a second, and the service's CPU for one."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from clips import make_clip
from common import cpu_s, print_table
from processes import Engine, Service

from faceswap.client import FaceSwap
from faceswap.samples import FACE

CLIENTS, JOBS = 32, 160


async def submit_and_watch(client: FaceSwap, clip: Path) -> str:
    """Submit a job and watch it to its success; returns its id."""
    prompt_id = await client.submit(clip, FACE)
    async for event in client.events(prompt_id):
        assert event.type != "error", event.data
    return prompt_id


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    clip = make_clip(folder / "clip.mp4", 2, size=(96, 64))
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        FaceSwap(service.url) as client,
    ):

        async def work(jobs: int) -> None:
            for _ in range(jobs):
                await submit_and_watch(client, clip)

        await submit_and_watch(client, clip)
        started, all_cpu, own_cpu = time.perf_counter(), cpu_s(service.pid), cpu_s(service.pid, children=False)
        await asyncio.gather(*(work(JOBS // CLIENTS) for _ in range(CLIENTS)))
        seconds = time.perf_counter() - started
        own_cpu = cpu_s(service.pid, children=False) - own_cpu
        all_cpu = cpu_s(service.pid) - all_cpu
    print_table(
        f"{JOBS} jobs of 2 frames, {CLIENTS} clients",
        ["jobs a second", "CPU a job: service", "its media workers"],
        [[f"{JOBS / seconds:.1f}", f"{own_cpu / JOBS * 1000:.1f} ms", f"{(all_cpu - own_cpu) / JOBS * 1000:.1f} ms"]],
    )


if __name__ == "__main__":
    asyncio.run(main())
