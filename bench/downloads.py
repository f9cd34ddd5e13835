"""P6: downloads of a result of 1 GiB, whole and in ranges, against `FileResponse` of a bare aiohttp server."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

from asking import ask, get
from clips import make_clip
from common import HERE, call, p99
from giant import pad
from jobs import submit_and_watch
from others import others
from processes import Child, Engine, Service
from rows import Effort, Figure, Row, at_least, at_most, in_turn, ratio
from transfers import fetch
from yarl import URL

from faceswap.client import FaceSwap

SIZE_BYTES = 2**30
AT_ONCE, REPEATS = 4, 2
RANGE_BYTES = 64 * 1024
REQUESTS, CONNECTIONS = 4_000, 8


def ranges(url: str, path: str, size: int, requests: int, *, seed: int = 0) -> list[list[bytes]]:
    """Return requests for pieces of a file, for each connection some."""
    chance = random.Random(seed)
    starts = [chance.randrange(max(1, size - RANGE_BYTES)) for _ in range(requests)]
    asked = [get(URL(url), path, f"Range: bytes={start}-{start + RANGE_BYTES - 1}") for start in starts]
    return [asked[number::CONNECTIONS] for number in range(CONNECTIONS)]


async def measure(url: str, path: str, other: str, size: int, requests: int) -> tuple[float, float, float, float]:
    """Return MiB a second of one and of several downloads, ranges a second, and the p99 ms of others meanwhile."""
    async with others(url, other) as times:
        one = await call(fetch, url + path, 1, REPEATS)
        several = await call(fetch, url + path, AT_ONCE, REPEATS)
    asked = await ask(URL(url), ranges(url, path, size, requests))
    return one / 2**20, several / 2**20, asked.a_second, p99(times[other])


def enlarge(service: Service, prompt_id: str, size: int) -> None:
    """Make the result of a job so many bytes, while the service is stopped."""
    (result,) = (path for path in (service.data_dir / "outputs").rglob("*") if path.is_file())
    pad(result, size)
    with closing(sqlite3.connect(service.data_dir / "faceswap.db")) as connection, connection:
        connection.execute("UPDATE job SET result_bytes = ? WHERE prompt_id = ?", (size, prompt_id))


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Send the same file from both servers."""
    size = effort.of(SIZE_BYTES, 2**21)
    files = folder / "bare"
    files.mkdir()
    (files / "result.mp4").touch()
    pad(files / "result.mp4", size)
    async with Engine(folder, paint=True) as engine, Service(folder, engine.url) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await submit_and_watch(client, make_clip(folder / "clip.mp4", 24))
            name = (await client.wait(prompt_id)).filename
        await service.stop()
        enlarge(service, prompt_id, size)
        await service.start()
        async with Child(folder / "bare.log", "bare", str(files), "{}", cwd=HERE) as bare:
            requests = effort.of(REQUESTS, CONNECTIONS)
            ours, theirs = await in_turn(
                effort.rounds,
                partial(measure, service.url, f"/download/{name}", f"/status/{prompt_id}", size, requests),
                partial(measure, bare.url, "/files/result.mp4", "/json", size, requests),
            )
    return [
        Figure("one download", "MiB/s", ours[0], theirs[0], ratio, at_least(0.95)),
        Figure(f"{AT_ONCE} downloads at once", "MiB/s", ours[1], theirs[1], ratio, at_least(0.95)),
        Figure("ranges of 64 KiB", "requests/s", ours[2], theirs[2], ratio, at_least(0.95)),
        Figure("others meanwhile", "p99 ms", ours[3], theirs[3], ratio, at_most(1.0)),
    ]


ROWS = (Row("P6", "`GET /download` of 1 GiB, against `FileResponse` of a bare server", measure_row),)
