"""`GET /status` with 10,000 jobs, a tenth of them waiting, beside a bare aiohttp handler with the same document."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from clips import make_clip
from common import cpu_s, print_table
from processes import Child, Engine, Service
from start import fill
from yarl import URL

from faceswap.client import FaceSwap
from faceswap.samples import FACE

ENDED, WAITING = 9_000, 1_000
CONNECTIONS = 32
REQUESTS, ROUNDS = 8_000, 5


async def ask(url: URL, requests: int, times: list[float]) -> None:
    """Ask over one connection, as often as `requests` says; adds the seconds that each answer took."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    request = f"GET {url.path} HTTP/1.1\r\nHost: {url.authority}\r\n\r\n".encode()
    for _ in range(requests):
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
        await reader.readexactly(int(length))
        times.append(time.perf_counter() - started)
    writer.close()


async def measure(url: URL, pid: int) -> tuple[float, float, float]:
    """Return requests a second, the 99th percentile of the milliseconds, and CPU microseconds a request of `pid`."""
    times: list[float] = []
    started, cpu = time.perf_counter(), cpu_s(pid)
    await asyncio.gather(*(ask(url, REQUESTS // CONNECTIONS, times) for _ in range(CONNECTIONS)))
    seconds, cpu = time.perf_counter() - started, cpu_s(pid) - cpu
    return REQUESTS / seconds, statistics.quantiles(times, n=100)[98] * 1000, cpu / REQUESTS * 1e6


def medians(rounds: Sequence[tuple[float, ...]]) -> list[float]:
    """Return the median of each figure."""
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    async with Engine(folder, paint=True) as engine, Service(folder, engine.url, queue_limit=100_000) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(make_clip(folder / "clip.mp4", 24), FACE)
            async for _ in client.events(prompt_id):
                pass
        await service.stop()
        fill(service.data_dir / "faceswap.db", prompt_id, ENDED, WAITING)
        await service.start()
        url = URL(f"{service.url}/status/{prompt_id}")
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            document = await answer.json()
        async with Child(folder / "bare.log", "bare", json.dumps(document), cwd=Path(__file__).parent) as bare:
            subjects = ((url, service.pid), (URL(bare.url) / "status", bare.pid))
            rounds = [[await measure(*subject) for subject in subjects] for _ in range(ROUNDS + 1)][1:]
    ours, theirs = (
        [statistics.median(values) for values in zip(*each, strict=True)] for each in zip(*rounds, strict=True)
    )
    header = ["", "a second", "p99, ms", "CPU a request, µs"]
    rows: list[list[object]] = [
        ["`/status`", *(f"{value:,.1f}" for value in ours)],
        ["bare handler", *(f"{value:,.1f}" for value in theirs)],
        ["ratio", *(f"{one / other:.2f}" for one, other in zip(ours, theirs, strict=True))],
    ]
    print_table(f"`/status`, {CONNECTIONS} connections, {ENDED + WAITING:,} jobs", header, rows)


if __name__ == "__main__":
    asyncio.run(main())
