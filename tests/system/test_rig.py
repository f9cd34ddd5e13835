"""Tests of the faults of a cluster: the way to a database, the S3 server, the database itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from postgres import Server, start_server
from system.records import PostgresRecords
from system.s3_proxy import S3Proxy
from system.tcp_proxy import TcpProxy
from waiting import WAIT_S, until
from yarl import URL

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Line]]


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Echo]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(100):
            self.heard += chunk
            writer.write(chunk)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Echo().running() as echo:
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(echo.port).running() as proxy:
        yield proxy


async def ask(line: Line, question: bytes) -> bytes:
    """Send something and return as many bytes of the answer; fewer when the connection ends."""
    reader, writer = line
    writer.write(question)
    try:
        async with asyncio.timeout(WAIT_S):
            return await reader.readexactly(len(question))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@pytest.fixture
async def connect(proxy: TcpProxy) -> AsyncIterator[Connect]:
    """Open a connection through the proxy; all are closed at the end."""
    lines: list[Line] = []

    async def open_one() -> Line:
        lines.append(await asyncio.open_connection("127.0.0.1", proxy.port))
        return lines[-1]

    yield open_one
    for _, writer in lines:
        writer.close()


async def test_a_way_that_is_cut_drops_old_and_new_connections_until_it_is_healed(
    proxy: TcpProxy, connect: Connect
) -> None:
    line = await connect()
    assert await ask(line, b"one") == b"one"
    proxy.cut()
    assert await ask(line, b"two") == b""
    assert await ask(await connect(), b"three") == b""
    proxy.heal()
    assert await ask(await connect(), b"four") == b"four"


async def test_a_silent_way_keeps_what_is_sent_until_it_is_healed(
    proxy: TcpProxy, echo: Echo, connect: Connect
) -> None:
    line = await connect()
    assert await ask(line, b"one") == b"one"
    proxy.hold()
    late = asyncio.create_task(ask(line, b"two"))
    new = asyncio.create_task(ask(await connect(), b"six"))
    await until(lambda: proxy.connections == 2)
    assert echo.heard == b"one" and not late.done() and not new.done()
    proxy.heal()
    assert (await late, await new) == (b"two", b"six")


async def test_answers_get_lost_though_the_questions_arrive(proxy: TcpProxy, echo: Echo, connect: Connect) -> None:
    line = await connect()
    proxy.lose_answers()
    asked = asyncio.create_task(ask(line, b"do it"))
    await until(lambda: echo.heard == b"do it")
    assert not asked.done()
    proxy.heal()
    assert await asked == b""
    assert await ask(await connect(), b"again") == b"again"


CALLS = web.AppKey("calls", list[str])


@pytest.fixture
async def storage() -> AsyncIterator[TestServer]:
    """Yield a server that answers with method, address, host and body of a call, and remembers the calls."""
    app = web.Application()

    async def answer(request: web.Request) -> web.Response:
        told = f"{request.method} {request.raw_path} {request.host} "
        app[CALLS].append(told)
        return web.Response(body=told.encode() + await request.read(), headers={"ETag": '"1"'})

    app[CALLS] = []
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield server


class Chances:
    """A random number generator of which the numbers are given."""

    def __init__(self, *numbers: float) -> None:
        self._numbers: Iterator[float] = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


async def test_s3_is_relayed_as_it_was_signed(storage: TestServer) -> None:
    async with S3Proxy(str(storage.make_url("")), random.Random(1)).running() as s3, aiohttp.ClientSession() as user:
        async with user.put(URL(f"{s3.url}/bucket/a%20b?x=%2F", encoded=True), data=b"body") as answer:
            host = s3.url.removeprefix("http://")
            assert await answer.read() == f"PUT /bucket/a%20b?x=%2F {host} ".encode() + b"body"
            assert answer.headers["ETag"] == '"1"'
        async with user.head(f"{s3.url}/bucket/a") as answer:
            assert int(answer.headers["Content-Length"]) == len(f"HEAD /bucket/a {host} ")


async def test_s3_says_503_to_everything_while_it_is_not_available(storage: TestServer) -> None:
    async with S3Proxy(str(storage.make_url("")), random.Random(1)).running() as s3, aiohttp.ClientSession() as user:
        s3.available = False
        async with user.get(f"{s3.url}/bucket/a") as answer:
            assert answer.status == 503 and b"SlowDown" in await answer.read()
        assert storage.app[CALLS] == []
        s3.available = True
        async with user.get(f"{s3.url}/bucket/a") as answer:
            assert answer.status == 200


async def test_s3_may_do_what_it_says_503_to(storage: TestServer) -> None:
    chances = Chances(0.9, 0.1, 0.1)  # the first call is passed on and its answer lost, the second not passed on
    async with S3Proxy(str(storage.make_url("")), chances, 0.5).running() as s3, aiohttp.ClientSession() as user:  # type: ignore[arg-type]
        for _ in range(2):
            async with user.put(f"{s3.url}/bucket/a", data=b"body") as answer:
                assert answer.status == 503
        assert len(storage.app[CALLS]) == 1


@pytest.fixture
def server() -> Iterator[Server]:
    server = start_server()
    yield server
    server.remove()


async def test_a_database_that_is_restarted_keeps_what_was_committed(server: Server) -> None:
    connection = await asyncpg.connect(server.url)
    for table in ("job", "input", "segment", "event"):
        await connection.execute(f"CREATE TABLE {table} (prompt_id TEXT PRIMARY KEY)")
    await connection.execute("INSERT INTO job VALUES ('kept'); INSERT INTO event VALUES ('kept'), ('lost')")
    server.stop()
    server.start()
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.execute("SELECT 1")
    records = PostgresRecords(server.url)
    assert await records.rows("SELECT * FROM job") == [{"prompt_id": "kept"}]
    assert await records.integrity_faults() == ["event has rows of lost, which is gone"]
