"""A 1 GiB video on its way in: how long it takes, what memory, and how late others are answered meanwhile."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from clips import make_clip, padded
from common import peak_memory_mb, print_table, reset_peak_memory
from processes import Engine, Service

from faceswap.client import FaceSwap
from faceswap.samples import FACE

SIZE_MB = 1024
PAUSE_S = 0.005
"""Between two questions of the others."""
PIECE_BYTES = 1024 * 1024


async def bare_put_s(folder: Path, video: Path) -> float:
    """Return the seconds of a PUT to a server that only writes the body to the disk and syncs it once."""

    async def put(request: web.Request) -> web.Response:
        with (folder / "put").open("wb") as file:
            async for piece in request.content.iter_chunked(PIECE_BYTES):
                await asyncio.to_thread(file.write, piece)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        return web.Response()

    app = web.Application()
    app.router.add_put("/", put)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    code = f"import asyncio, upload; asyncio.run(upload.put({url!r}, {str(video)!r}))"
    started = time.perf_counter()
    sender = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=_environment())
    await sender.wait()
    seconds = time.perf_counter() - started
    await runner.cleanup()
    (folder / "put").unlink()
    return seconds


async def put(url: str, video: str) -> None:
    """Send a file as the body of a PUT."""
    file = await asyncio.to_thread(Path(video).open, "rb")
    with file:
        async with aiohttp.ClientSession() as session, session.put(url, data=file) as answer:
            answer.raise_for_status()


async def ask(url: str, path: str) -> None:
    """Ask for a page over and over until standard input ends; print the milliseconds each answer took."""
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    times = []
    async with aiohttp.ClientSession() as session:
        while not ended.done():
            started = time.perf_counter()
            async with session.get(f"{url}{path}") as answer:
                await answer.read()
            times.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(PAUSE_S)
    sys.stdout.write(" ".join(map(str, times)))


@asynccontextmanager
async def others(url: str, *paths: str) -> AsyncIterator[dict[str, list[float]]]:
    """Ask for pages from processes of their own meanwhile; the milliseconds each answer took are there afterwards."""
    times: dict[str, list[float]] = {}
    pipe = asyncio.subprocess.PIPE
    asking = {
        path: await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"import asyncio, upload; asyncio.run(upload.ask({url!r}, {path!r}))"),
            stdin=pipe,
            stdout=pipe,
            env=_environment(),
        )
        for path in paths
    }
    yield times
    for path, process in asking.items():
        told, _ = await process.communicate(b"")
        times[path] = [float(word) for word in told.split()]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def upload_s(client: FaceSwap, video: Path) -> float:
    """Return the seconds until an upload is accepted; its job is cancelled then."""
    started = time.perf_counter()
    prompt_id = await client.submit(video, FACE)
    seconds = time.perf_counter() - started
    await client.cancel(prompt_id)
    return seconds


async def main() -> None:
    """Print one row; the folder goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="faceswap-bench-") as name:
        await measure(Path(name))


async def measure(folder: Path) -> None:
    """Upload once with nobody else there, and once while others ask."""
    video = padded(folder / "big.mp4", SIZE_MB * 2**20)
    bare_s = await bare_put_s(folder, video)
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        FaceSwap(service.url) as client,
    ):
        small = await client.submit(make_clip(folder / "small.mp4", 24), FACE)
        async for _ in client.events(small):
            pass
        before = reset_peak_memory(service.pid)
        alone_s = await upload_s(client, video)
        async with others(service.url, "/health", f"/status/{small}") as times:
            busy_s = await upload_s(client, video)
        peak = peak_memory_mb(service.pid)
    print_table(
        f"An upload of {SIZE_MB} MiB until the asynchronous answer; others ask every {PAUSE_S * 1000:.0f} ms",
        ["bare PUT", "alone", "while others ask", "memory before", "peak", "page", "median", "worst", "answers"],
        [
            [
                f"{bare_s:.1f} s",
                f"{alone_s:.1f} s",
                f"{busy_s:.1f} s",
                f"{before:.0f} MiB",
                f"{peak:.0f} MiB",
                path.split("/")[1],
                f"{statistics.median(found):.1f} ms",
                f"{max(found):.0f} ms",
                len(found),
            ]
            for path, found in times.items()
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
