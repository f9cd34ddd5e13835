"""P1: `GET /status` of many jobs, a tenth of them queued, beside a bare aiohttp handler with the same document."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import aiohttp
from asking import ask, get
from clips import make_clip
from common import HERE, cpu_s, p99
from places import deployed
from processes import Child, Engine, Service
from rows import Effort, Figure, Place, at_least, at_most, in_turn, ratio, rows_in
from yarl import URL

from faceswap.client import FaceSwap
from faceswap.samples import FACE

JOBS, ASKED_FOR = 10_000, 1_000
QUEUED_SHARE = 10
"""One job in so many is queued."""
CONNECTIONS = (32, 256)
REQUESTS = 8_000


async def measure(connections: int, requests: int, url: URL, paths: Sequence[str], pid: int) -> tuple[float, ...]:
    """Return requests a second, the 99th percentile of the milliseconds, and CPU microseconds a request of `pid`."""
    each = max(1, requests // connections)
    per_connection = [[get(url, random.choice(paths)) for _ in range(each)] for _ in range(connections)]
    before = cpu_s(pid)
    asked = await ask(url, per_connection)
    return asked.a_second, p99(asked.times_ms), (cpu_s(pid) - before) / (each * connections) * 1e6


async def status_document(service: Service, prompt_id: str) -> object:
    """Return the status of a job."""
    async with aiohttp.ClientSession() as session, session.get(f"{service.url}/status/{prompt_id}") as answer:
        assert answer.status == 200
        return await answer.json()


async def measure_row(place: Place, folder: Path, effort: Effort) -> list[Figure]:
    """Ask with few and with many connections; the engine is held, so that what is queued stays so."""
    jobs, asked_for = effort.of(JOBS, 20), effort.of(ASKED_FOR, 20)
    figures = []
    async with Engine(folder) as engine, deployed(place, folder, engine.url, queue_limit=100_000) as nodes:
        await engine.hold()
        async with FaceSwap(nodes.asked.url) as client:
            prompt_id = await client.submit(make_clip(folder / "clip.mp4", 24), FACE)
        await nodes.stop()
        queued = jobs // QUEUED_SHARE
        ended, waiting = nodes.fill(prompt_id, ended=jobs - queued, waiting=queued)
        await nodes.start()
        service = nodes.asked
        some = asked_for // QUEUED_SHARE
        paths = [f"/status/{one}" for one in (*ended[: asked_for - some], *waiting[:some])]
        document = json.dumps(await status_document(service, ended[0]))
        async with Child(folder / "bare.log", "bare", str(folder), document, cwd=HERE) as bare:
            for connections in CONNECTIONS:
                ours, theirs = await in_turn(
                    effort.rounds,
                    partial(measure, connections, effort.of(REQUESTS), URL(service.url), paths, service.pid),
                    partial(measure, connections, effort.of(REQUESTS), URL(bare.url), ["/json"], bare.pid),
                )
                name = f"{connections} connections"
                figures += [
                    Figure(name, "requests/s", ours[0], theirs[0], ratio, at_least(1.0)),
                    Figure(name, "p99 ms", ours[1], theirs[1], ratio, at_most(1.2)),
                    Figure(name, "CPU µs a request", ours[2], theirs[2], ratio),
                ]
    return figures


ROWS = rows_in(
    "P1", "`GET /status` of 1,000 of 10,000 jobs, against a bare handler that answers the document", measure_row
)
