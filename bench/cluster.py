"""N1: several nodes on one PostgreSQL: what they do together, how soon they hear of each other and take over.

`FACESWAP_TEST_DATABASE_URL` names a server in place of the one that is started here, which syncs as a real one does.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import postgres
from clips import make_clip
from common import p99
from jobs import submit_and_watch
from places import make_safe
from processes import Engine, Service
from rows import Effort, Figure, Row, in_turn, ratio
from status import REQUESTS, measure
from stored_jobs import MIGRATIONS, new_job
from waiting import until
from yarl import URL

from faceswap.client import FaceSwap
from faceswap.events import status
from faceswap.feed import Feed
from faceswap.hub import Hub
from faceswap.jobs import JobState
from faceswap.store import Lease, Store, backend_lease, retry_writes

NODES = (1, 2, 4)
CLAIMS, EVENTS = 1_200, 2_400
ROOM = 1_000_000
"""Jobs that may wait: no queue is full here."""
AT_ONCE = 8
"""Claims, or events, that a node has under way at a time."""
NOTES = 200
LATEST_S = 30.0
CONNECTIONS = 32
TAKE_OVERS = 3
LOOK_S = 0.05
"""Between two looks at who holds a lease."""


async def open_store(where: str) -> Store:
    """Open a database by its URL, or by the path of its file."""
    return await Store.open(where if "://" in where else Path(where), MIGRATIONS, lambda _: None)


# A node, as a process of its own


async def claims(store: Store, node: str) -> int:
    """Claim until nothing waits; returns how many were got."""
    lease = await store.acquire_lease(backend_lease(node), node, 3600)
    assert lease is not None
    return sum(await asyncio.gather(*(_claim_all(store, lease) for _ in range(AT_ONCE))))


async def _claim_all(store: Store, lease: Lease) -> int:
    count = 0
    while await store.claim(lease) is not None:
        count += 1
    return count


async def events(store: Store, node: str) -> int:
    """Add events to this node's jobs; returns how many."""
    jobs, _ = await store.jobs(state=None, limit=200, cursor=None, owner=node)
    each = EVENTS // int(os.environ["NODES"]) // AT_ONCE

    async def add(prompt_id: str) -> None:
        for number in range(each):
            await store.add_event(prompt_id, status(JobState.QUEUED, f"message {number}"))

    await asyncio.gather(*(add(job.prompt_id) for job in jobs[:AT_ONCE]))
    return each * AT_ONCE


async def work(where: str, node: str, task: str) -> None:
    """Do a task when a line comes in; write how many, and the seconds since the epoch at the start and at the end."""
    store = await open_store(where)
    await asyncio.gather(*(store.check_writable() for _ in range(AT_ONCE)))  # so that its connections are there
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    started = time.time()
    count = await {"claims": claims, "events": events}[task](store, node)
    sys.stdout.write(f"{count} {started} {time.time()}\n")
    await store.close()


async def watch(where: str, prompt_id: str) -> None:
    """Watch a job as a node does; write the seconds since the epoch at which each event was heard, with its text."""
    hub = Hub()
    feed = Feed(hub)
    store = await Store.open(where, MIGRATIONS, feed.publish)
    feed.attach(store)
    running = asyncio.create_task(feed.run())
    async with feed.watch(prompt_id) as subscription:
        await until(lambda: feed.listening)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for _ in range(NOTES):
            event = await subscription.next(LATEST_S)
            assert event is not None
            sys.stdout.write(f"{event.data['message']} {time.time()}\n")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()


@asynccontextmanager
async def process(call: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a call of this module in a process, once that is ready."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"import asyncio, cluster; asyncio.run(cluster.{call})"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


# The measurements


async def a_second(where: str, task: str, nodes: int) -> float:
    """Return what these nodes, each a process, do in a second together."""
    store = await open_store(where)
    names = [f"node{number}" for number in range(nodes)]
    owners = [None] * CLAIMS if task == "claims" else names * AT_ONCE

    async def create_every(first: int) -> None:
        for owner in owners[first::AT_ONCE]:
            await retry_writes(partial(store.create, new_job(owner=owner, output_name=str(uuid.uuid4())), ROOM))

    await asyncio.gather(*(create_every(first) for first in range(AT_ONCE)))
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(process(f"work({where!r}, {name!r}, {task!r})", NODES=str(nodes)))
            for name in names
        ]
        answers = await asyncio.gather(*(child.communicate(b"\n") for child in children))
    await store.close()
    counts, starts, ends = zip(*(map(float, answer.split()) for answer, _ in answers), strict=True)
    assert task != "claims" or sum(counts) == CLAIMS, "a segment was claimed twice, or not at all"
    return sum(counts) / (max(ends) - min(starts))


async def throughput(folder: Path, effort: Effort) -> list[Figure]:
    """Return claims and events a second, of one SQLite and of nodes on PostgreSQL, against one node on PostgreSQL."""
    found: dict[str, dict[str, list[float]]] = {task: {} for task in ("claims", "events")}
    for number in range(effort.rounds):
        for task, rates in found.items():
            sqlite = str(folder / f"{task}-{number}.db")
            rates.setdefault("SQLite, 1 node", []).append(await a_second(sqlite, task, 1))
            for nodes in NODES:
                with postgres.empty_database() as url:
                    rates.setdefault(f"PostgreSQL, {nodes} node{'s' * (nodes > 1)}", []).append(
                        await a_second(url, task, nodes)
                    )
    return [
        Figure(f"{task}, {name}", "a second", values, rates["PostgreSQL, 1 node"], ratio)
        for task, rates in found.items()
        for name, values in rates.items()
    ]


async def latency(url: str) -> list[Figure]:
    """Return the time from the end of a commit on one node to its event at a watcher on another."""
    hub = Hub()
    feed = Feed(hub)
    store = await Store.open(url, MIGRATIONS, feed.publish)
    feed.attach(store)
    running = asyncio.create_task(feed.run())
    job, _ = await store.create(new_job(), ROOM)
    committed: dict[str, float] = {}
    async with process(f"watch({url!r}, {job.prompt_id!r})") as watcher:
        for number in range(NOTES):
            await store.add_status(job.prompt_id, str(number))
            committed[str(number)] = time.time()
            await asyncio.sleep(random.uniform(0, 0.2))
        heard, _ = await watcher.communicate()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()
    lines = [line.split() for line in heard.decode().splitlines()]
    assert [number for number, _ in lines] == list(committed), "events were lost, doubled or out of order"
    times = [(float(at) - committed[number]) * 1000 for number, at in lines]
    name = f"from a commit to a watcher on another node, {NOTES} events"
    return [Figure(name, "p50 ms", [statistics.median(times)]), Figure(name, "p99 ms", [p99(times)])]


async def statuses(folder: Path, url: str, effort: Effort) -> list[Figure]:
    """Return `/status` a second on SQLite and on PostgreSQL, asked in turn."""
    clip = make_clip(folder / "clip.mp4", 24)
    async with Engine(folder, paint=True) as engine, AsyncExitStack() as stack:
        subjects = []
        for name, settings in (("sqlite", {}), ("postgres", {"database_url": url})):
            service = await stack.enter_async_context(Service(folder / name, engine.url, **settings))
            async with FaceSwap(service.url) as client:
                prompt_id = await submit_and_watch(client, clip)
            where = (URL(service.url), [f"/status/{prompt_id}"], service.pid)
            subjects.append(partial(measure, CONNECTIONS, REQUESTS, *where))
        postgres_, sqlite = await in_turn(effort.rounds, *reversed(subjects))
    units = ("requests/s", "p99 ms", "CPU µs a request")
    return [
        Figure("`/status` on PostgreSQL, against SQLite", unit, ours, theirs, ratio)
        for unit, ours, theirs in zip(units, postgres_, sqlite, strict=True)
    ]


async def take_overs(folder: Path, url: str) -> list[Figure]:
    """Return the seconds from the kill of a node that holds an engine until another holds it."""
    sql = "SELECT holder FROM lease WHERE name = ?"
    (folder / "shared").mkdir()
    async with Engine(folder, paint=True) as engine, AsyncExitStack() as stack:
        lease = backend_lease(engine.url)

        def holder() -> str:
            rows = postgres.sql(url, sql, lease)
            return str(rows[0][0]) if rows else ""

        nodes: dict[str, Service] = {}
        for name in ("node0", "node1"):
            settings = {"database_url": url, "files_url": folder / "shared", "node": name}
            nodes[name] = await stack.enter_async_context(Service(folder / name, engine.url, **settings))
        times = []
        for _ in range(TAKE_OVERS):
            first = await until(holder)
            (second,) = nodes.keys() - {first}
            killed = time.perf_counter()
            await nodes[first].kill()
            while holder() != second:
                await asyncio.sleep(LOOK_S)
            times.append(time.perf_counter() - killed)
            await nodes[first].start()
    return [Figure("an engine taken over after `kill -9` of its node", "seconds", times)]


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Take all of it, each with a database of its own."""
    make_safe()
    figures = await throughput(folder, effort)
    with postgres.database() as url:
        figures += await latency(url)
    with postgres.database() as url:
        figures += await statuses(folder, url, effort)
    with postgres.database() as url:
        figures += await take_overs(folder, url)
    return figures


ROWS = (Row("N1", "several nodes on one PostgreSQL", measure_row),)
