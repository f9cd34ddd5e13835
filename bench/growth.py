"""G1 to G4: the service's CPU seconds for one more job, watcher, event and queued job, by how many there are.

A cost that does not grow gives the exponent 1 for all together.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from asking import ask, get
from clips import make_clip
from common import cpu_s
from filled import fill
from jobs import submit_and_watch
from processes import Engine, Service
from rows import GROWTH_SIZES, Effort, Figure, Row, growth
from talker import Talkers
from watchers import TAIL_S, submit_until_held
from watching import watching
from yarl import URL

from faceswap.client import FaceSwap
from faceswap.samples import FACE

JOBS, CLIENTS = 16, 8
WINDOW_S = 2.0
MOST_FRAMES = 5_000
"""Frames to all watchers in a second: more would keep a core busy."""
FASTEST = 25.0
"""Events in a second, at most."""
QUEUED = 10
ASKED = 50

Costs = dict[int, float]


async def cpu_ms(service: Service, work: Callable[[], Awaitable[object]]) -> float:
    """Return the CPU ms that the service's own process takes for some work."""
    before = cpu_s(service.pid, children=False)
    await work()
    return (cpu_s(service.pid, children=False) - before) * 1000


async def jobs_row(folder: Path, effort: Effort) -> list[Figure]:
    """Run some jobs where there are so many in the database."""
    clip = make_clip(folder / "clip.mp4", 2, size=(96, 64))
    rounds: list[Costs] = [{} for _ in range(effort.rounds)]
    async with Engine(folder, paint=True) as engine, Service(folder, engine.url) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await submit_and_watch(client, clip)
        there = 0
        for size in effort.sizes(GROWTH_SIZES):
            await service.stop()
            fill(service.data_dir, prompt_id, ended=size - there)
            there = size
            await service.start()
            async with FaceSwap(service.url) as client:
                await submit_and_watch(client, clip)

                async def some(client: FaceSwap = client) -> None:
                    await asyncio.gather(*(submit_and_watch(client, clip) for _ in range(CLIENTS)))

                for costs in rounds:
                    taken = [await cpu_ms(service, some) for _ in range(JOBS // CLIENTS)]
                    costs[size] = sum(taken) / JOBS
    return [growth("a job, by jobs in the database", "CPU ms", rounds, of_each=True)]


async def watchers_row(folder: Path, effort: Effort) -> list[Figure]:
    """Watch a job from so many connections, no more than the service accepts with the descriptors that it may have."""
    accepted = resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 4 * 9 // 10
    sizes = [min(size, accepted) for size in effort.sizes(GROWTH_SIZES)]
    events: list[Costs] = [{} for _ in range(effort.rounds)]
    arrivals: list[Costs] = [{} for _ in range(effort.rounds)]
    async with Talkers(folder / "talkers") as talkers, Service(folder, *talkers.urls) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await submit_until_held(client, make_clip(folder / "clip.mp4", 24))
        targets = {size: [f"stream {service.url} {prompt_id}"] * size for size in sizes}
        # All come before the first event is sent: each is sent all that there were.
        for costs in arrivals:
            for size in sizes:
                before = cpu_s(service.pid, children=False)
                async with watching(folder / "targets", targets[size]):
                    costs[size] = (cpu_s(service.pid, children=False) - before) * 1000
        for size in sizes:
            async with (
                watching(folder / "targets", targets[size]) as take,
                talkers.talking(min(FASTEST, MOST_FRAMES / size)),
            ):
                await asyncio.sleep(TAIL_S)
                for costs in events:
                    await take()
                    cost = await cpu_ms(service, lambda: asyncio.sleep(WINDOW_S))
                    costs[size] = cost / max(1, len((await take())["lag_ms"]))
    return [
        growth("an event, by watchers", "CPU ms", events, of_each=False),
        growth("watchers that come, all", "CPU ms", arrivals, of_each=False),
    ]


def add_events(data_dir: Path, prompt_id: str, count: int) -> None:
    """Store more events of a job, while no service runs."""
    with closing(sqlite3.connect(data_dir / "faceswap.db")) as connection, connection:
        ((last, at),) = connection.execute("SELECT last_seq, updated_at FROM job WHERE prompt_id = ?", (prompt_id,))
        data = json.dumps({"prompt_id": prompt_id, "message": "an event of this benchmark"})
        rows = ((prompt_id, last + number + 1, "status", data, at) for number in range(count))
        connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("UPDATE job SET last_seq = last_seq + ? WHERE prompt_id = ?", (count, prompt_id))


async def replay(service: Service, prompt_id: str, count: int) -> None:
    """Read so many events of a job from its first on."""
    url = URL(service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=2**20)
    writer.write(get(url, f"/events/{prompt_id}"))
    while count:
        count -= (await reader.readline()).startswith(b"event:")
    writer.close()


async def events_row(folder: Path, effort: Effort) -> list[Figure]:
    """Store events of a job, and read them from the first on, where it has so many."""
    sizes = effort.sizes(GROWTH_SIZES)
    stored: list[Costs] = [{} for _ in range(effort.rounds)]
    replayed: list[Costs] = [{} for _ in range(effort.rounds)]
    async with Talkers(folder / "talkers") as talkers, Service(folder, *talkers.urls) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await submit_until_held(client, make_clip(folder / "clip.mp4", 24))
        there = 0
        for size in sizes:
            await service.stop()
            add_events(service.data_dir, prompt_id, size - there)
            there = size
            await service.start()
            targets = [f"stream {service.url} {prompt_id}"]
            async with watching(folder / "targets", targets) as take, talkers.talking(FASTEST):
                await asyncio.sleep(TAIL_S)
                for costs in stored:
                    await take()
                    cost = await cpu_ms(service, lambda: asyncio.sleep(WINDOW_S))
                    costs[size] = cost / max(1, len((await take())["lag_ms"]))
            await replay(service, prompt_id, size)
            for costs in replayed:
                costs[size] = await cpu_ms(service, lambda size=size: replay(service, prompt_id, size))
    return [
        growth("an event, by events of its job", "CPU ms", stored, of_each=True),
        growth("all events of a job sent", "CPU ms", replayed, of_each=False),
    ]


async def queue_row(folder: Path, effort: Effort) -> list[Figure]:
    """Queue some jobs more, and ask for pages, where so many wait; the engine is held, so that they stay."""
    clip = make_clip(folder / "clip.mp4", 2, size=(96, 64))
    names = ("one job more", "`/status` of one that waits", "`/jobs?limit=10`")
    rounds: dict[str, list[Costs]] = {name: [{} for _ in range(effort.rounds)] for name in names}
    async with Engine(folder) as engine, Service(folder, engine.url, queue_limit=100_000) as service:
        await engine.hold()
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
        there = 0
        for size in effort.sizes(GROWTH_SIZES):
            await service.stop()
            fill(service.data_dir, prompt_id, waiting=max(0, size - there))
            await service.start()
            url = URL(service.url)
            async with FaceSwap(service.url) as client:
                last = await client.submit(clip, FACE)
                there = size + 1
                page = [get(url, "/jobs?limit=10")]
                for number in range(effort.rounds):
                    for name, count, work in (
                        ("one job more", QUEUED, lambda client=client: client.submit(clip, FACE)),
                        ("`/jobs?limit=10`", QUEUED, lambda url=url, page=page: ask(url, [page])),
                        (
                            "`/status` of one that waits",
                            ASKED,
                            lambda url=url, last=last: ask(url, [[get(url, f"/status/{last}")]]),
                        ),
                    ):
                        taken = [await cpu_ms(service, work) for _ in range(count)]
                        rounds[name][number][size] = sum(taken) / count
                        there += count if name == "one job more" else 0
    return [growth(f"{name}, by jobs that wait", "CPU ms", costs, of_each=True) for name, costs in rounds.items()]


ROWS = (
    Row("G1", "growth: a job, with 10 to 10,000 in the database", jobs_row),
    Row("G2", "growth: an event, with 10 to 10,000 watchers", watchers_row),
    Row("G3", "growth: an event, with 10 to 10,000 of its job", events_row),
    Row("G4", "growth: a queued job, with 10 to 10,000 before it", queue_row),
)
