"""Peak memory of the service during an upload of 2 GiB, and the time of others' answers meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import struct
import tempfile
import time
from pathlib import Path

import aiohttp
from clips import make_clip
from common import peak_memory_mb, print_table, reset_peak_memory
from processes import Engine, Service

from faceswap.client import FaceSwapClient
from faceswap.samples import FACE

SIZE_MB = 2047


def big_video(folder: Path) -> Path:
    """Write a playable clip followed by a `free` box: the file is sparse, the upload is not."""
    path = make_clip(folder / "big.mp4", 24)
    padding = SIZE_MB * 2**20 - path.stat().st_size
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.write(struct.pack(">I4sQ", 1, b"free", padding))
        file.truncate(SIZE_MB * 2**20)
    return path


async def answer_times(url: str, stop: asyncio.Event) -> list[float]:
    """Ask for `/health` again and again; returns the seconds of each answer."""
    times = []
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            started = time.perf_counter()
            async with session.get(f"{url}/health") as answer:
                await answer.read()
            times.append(time.perf_counter() - started)
            await asyncio.sleep(0.005)
    return times


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    video = big_video(folder)
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        FaceSwapClient(service.url) as client,
    ):
        await client.submit(make_clip(folder / "small.mp4", 24), FACE)
        before = reset_peak_memory(service.pid)
        stop = asyncio.Event()
        asking = asyncio.create_task(answer_times(service.url, stop))
        started = time.perf_counter()
        prompt_id = await client.submit(video, FACE)
        seconds = time.perf_counter() - started
        upload_peak = peak_memory_mb(service.pid)
        async for event in client.watch(prompt_id):
            assert event.type != "error", event.data
        stop.set()
        times = await asking
        peak = peak_memory_mb(service.pid)
    print_table(
        f"An upload of {SIZE_MB} MiB",
        ["memory before", "peak until accepted", "peak until done", "seconds", "others' median", "others' worst"],
        [
            [
                f"{before:.0f} MiB",
                f"{upload_peak:.0f} MiB",
                f"{peak:.0f} MiB",
                f"{seconds:.1f}",
                f"{statistics.median(times) * 1000:.1f} ms",
                f"{max(times) * 1000:.0f} ms",
            ]
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
