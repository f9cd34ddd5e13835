"""Every watcher gets every event once and in order, whether it was written at once or had to wait."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from stored_jobs import MIGRATIONS, create
from waiting import WAIT_S, until

from faceswap.api import keys
from faceswap.api import stream as stream_module
from faceswap.api.stream import send_events, stream_events
from faceswap.events import Event, Payload
from faceswap.feed import Feed
from faceswap.hub import QUEUE_LIMIT, Hub
from faceswap.jobs import Job
from faceswap.store import Store

MANY = QUEUE_LIMIT - 20
LARGE = 40_000
"""Characters of a message: `MANY` of them are more than a connection takes over from a server."""


class World:
    """A job, and a server that streams its events."""

    def __init__(self, store: Store, hub: Hub, job: Job, server: TestServer) -> None:
        self.store = store
        self.hub = hub
        self.job = job
        self.server = server

    async def tell(self, number: int, size: int = 0) -> None:
        await self.store.add_event(
            self.job.prompt_id, Payload("status", {"status": "QUEUED", "message": f"{number} {'x' * size}"})
        )

    async def watch(self, version: str = "1.1", after: int = 0) -> Reader:
        """Begin to watch; returns when what is published from now on is written at once."""
        before = self.written_at_once
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # who does not read is soon behind
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.server.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=2**14)
        writer.write(f"GET /events HTTP/{version}\r\nHost: x\r\nLast-Event-ID: {after}\r\n\r\n".encode())
        await until(lambda: self.written_at_once > before)
        return Reader(reader, writer, version)

    @property
    def written_at_once(self) -> int:
        """The number of watchers that are written to at once."""
        watchers = self.hub._subscriptions.get(self.job.prompt_id, ())
        return sum(watcher.pass_on is not None for watcher in watchers)


class Reader:
    """A client of an event stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: str) -> None:
        self._reader = reader
        self._writer = writer
        self._version = version

    def close(self) -> None:
        self._writer.close()

    async def read(self) -> bytes:
        """Read some bytes."""
        return await self._reader.read(2**16)

    async def events(self, answer: bytes = b"") -> list[tuple[int, str]]:
        """Read on to the end; returns the number and the message of each event."""
        end = b"0\r\n\r\n" if self._version == "1.1" else b"cancelled\n\n"
        received = bytearray(answer)
        async with asyncio.timeout(WAIT_S):
            while not received.endswith(end):
                read = await self.read()
                if not read:
                    break
                received += read
        self.close()
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        assert b"200 OK" in head
        if self._version == "1.1":
            assert b"Transfer-Encoding: chunked" in head
            body = unchunked(body)
        blocks = [block.split("\n") for block in body.decode().split("\n\n")[:-1] if not block.startswith(":")]
        return [(int(number[4:]), json.loads(data[6:]).get("message", "")) for number, _, data in blocks]


def unchunked(body: bytes) -> bytes:
    """Return what stands in the chunks of an answer, all of which must be there."""
    whole, at = bytearray(), 0
    while True:
        begin = body.index(b"\r\n", at) + 2
        size = int(body[at:begin], 16)
        end = begin + size
        assert body[end : end + 2] == b"\r\n"
        if size == 0:
            assert end + 2 == len(body)
            return bytes(whole)
        whole += body[begin:end]
        at = end + 2


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    hub = Hub()
    feed = Feed(hub)
    store = await Store.open(tmp_path / "faceswap.db", MIGRATIONS, feed.publish)
    job = await create(store)
    app = web.Application()
    app[keys.STORE], app[keys.FEED] = store, feed

    async def watch(request: web.Request) -> web.StreamResponse:
        return await stream_events(request, job.prompt_id, int(request.headers["Last-Event-ID"]))

    async def watch_socket(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False)
        await response.prepare(request)
        await send_events(request, response, job.prompt_id, 0)
        await response.close()
        return response

    app.add_routes([web.get("/events", watch), web.get("/socket", watch_socket)])
    async with TestServer(app) as server:
        yield World(store, hub, job, server)
    await store.close()


def numbers(told: list[tuple[int, str]]) -> list[int]:
    return [number for number, _ in told]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_live_events_are_written_at_once_and_the_stream_ends_with_the_job(world: World, version: str) -> None:
    await world.tell(1)
    watcher = await world.watch(version)
    for number in range(2, 6):
        await world.tell(number)
    assert world.hub.lag == 0
    await world.store.request_cancel(world.job.prompt_id, None)
    told = await watcher.events()
    assert numbers(told) == list(range(1, 8))
    assert [message.strip() for _, message in told[1:6]] == ["1", "2", "3", "4", "5"]


async def test_who_comes_back_gets_what_is_missing_only(world: World) -> None:
    for number in range(1, 4):
        await world.tell(number)
    watcher = await world.watch(after=3)
    await world.tell(4)
    await world.store.request_cancel(world.job.prompt_id, None)
    assert numbers(await watcher.events()) == [4, 5, 6]


async def test_a_watcher_that_is_behind_gets_everything_in_order_once_it_reads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "WRITE_TIMEOUT_S", WAIT_S)
    slow, fast = await world.watch(), await world.watch()
    reading = asyncio.create_task(fast.events())
    for number in range(MANY):
        await world.tell(number, LARGE)
    assert world.hub.lag > 0
    for number in range(MANY, MANY + 10):
        await world.tell(number)
    await world.store.request_cancel(world.job.prompt_id, None)
    expected = list(range(1, MANY + 13))
    assert numbers(await reading) == expected
    assert numbers(await slow.events()) == expected


async def test_a_watcher_that_never_reads_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WRITE_TIMEOUT_S", 0.2)
    watcher = await world.watch()
    for number in range(MANY):
        await world.tell(number, LARGE)
    await until(lambda: world.hub.watchers == 0)
    watcher.close()


async def test_a_silent_stream_is_kept_alive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "KEEPALIVE_S", 0.01)
    watcher = await world.watch()
    read = b""
    async with asyncio.timeout(WAIT_S):
        while read.count(b": still here") < 3:
            read += await watcher.read()
    await world.store.request_cancel(world.job.prompt_id, None)
    assert numbers(await watcher.events(read)) == [1, 2]


@pytest.mark.parametrize("size", [0, 125, 200, 70_000])
async def test_frames_of_every_length_are_read_by_a_websocket(world: World, size: int) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(world.server.make_url("/socket")) as socket:
        await until(lambda: world.written_at_once)
        await world.tell(1, size)
        await world.store.request_cancel(world.job.prompt_id, None)
        async with asyncio.timeout(WAIT_S):
            told = [json.loads(message.data) async for message in socket]
    assert [event["id"] for event in told] == [1, 2, 3]
    assert told[1] == {"id": 2, "event": "status", "data": {"status": "QUEUED", "message": f"1 {'x' * size}"}}


def test_an_event_is_encoded_once() -> None:
    event = Event("job", 1, "status", {})
    assert event.chunk() is event.chunk()
    assert event.frame() is event.frame()
    assert event.sse() in event.chunk()
