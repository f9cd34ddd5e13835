"""Connections over real sockets: how they are accepted, read and limited before anything is whole."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from processes import eventually
from system.talk import UPGRADE, frame_head
from waiting import WAIT_S, until

from faceswap.api import connection as connection_module
from faceswap.api.connection import LEAST_READ_BYTES, MOST_READ_BYTES, Connection, Listener
from faceswap.api.swap import _first_of
from faceswap.errors import BadRequest
from faceswap.intake import MAX_TEXT_BYTES

MIB = 1024 * 1024


class Rig:
    """A server behind the listener; `messages` are those that reached a WebSocket's handler."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.messages: list[tuple[WSMsgType, int]] = []
        self.body_bytes = 0
        self.endless = 0

    async def connect(self, *data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection and send bytes on it, in pieces."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in data:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return reader, writer

    async def answer(self, *data: bytes) -> bytes:
        """Read everything that comes back until the server closes the connection."""
        reader, writer = await self.connect(*data)
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
        writer.close()
        return answer

    async def on_socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=16 * MIB, compress=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self.messages.append((message.type, len(message.data)))
                await socket.send_str("taken")
        return socket

    async def on_endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self.endless += 1
        try:
            while True:
                await response.write(bytes(MIB))
        finally:
            self.endless -= 1

    async def on_body(self, request: web.Request) -> web.Response:
        while piece := await request.content.readany():
            self.body_bytes += len(piece)
        return web.Response(text="taken")


async def on_get(_request: web.Request) -> web.Response:
    return web.Response(text="here")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(0)
    app = web.Application()
    app.add_routes([web.get("/", on_get), web.get("/face-swap-ws", rig.on_socket), web.post("/", rig.on_body)])
    app.router.add_get("/endless", rig.on_endless)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    listener = Listener(runner.server)
    _, rig.port = await listener.bind("127.0.0.1", 0)
    accepting = asyncio.create_task(listener.run())
    yield rig
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    listener.close()
    await runner.cleanup()


# WebSocket messages


def frame(kind: WSMsgType, payload: bytes, *, last: bool = True) -> bytes:
    head = frame_head(kind, len(payload))
    return bytes([head[0] if last else head[0] & 0x7F]) + head[1:] + payload


async def close_code(rig: Rig, *data: bytes) -> int:
    """Return the code with which the server closes a socket, whatever it has sent before."""
    answer = await rig.answer(UPGRADE + data[0], *data[1:])
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    while rest[0] & 0x0F != WSMsgType.CLOSE:
        rest = rest[2 + rest[1] :]
    return int.from_bytes(rest[2:4])


TEXT = frame(WSMsgType.TEXT, b"{}")
PING = b"\x89\x80" + bytes(4)
TOO_LONG = [
    frame_head(WSMsgType.TEXT, MAX_TEXT_BYTES + 1),
    frame_head(WSMsgType.BINARY, MAX_TEXT_BYTES + 1),
    frame_head(WSMsgType.TEXT, 2**63),
    frame(WSMsgType.TEXT, b"x" * 60_000, last=False) + frame_head(WSMsgType.CONTINUATION, 6_000),
    frame(WSMsgType.TEXT, b"x" * 60_000, last=False) + PING + frame_head(WSMsgType.CONTINUATION, 6_000),
    TEXT + frame_head(WSMsgType.TEXT, MAX_TEXT_BYTES + 1),
    TEXT + frame(WSMsgType.BINARY, bytes(MIB)) + frame_head(WSMsgType.TEXT, MAX_TEXT_BYTES + 1),
    TEXT + frame_head(WSMsgType.BINARY, 16 * MIB + 1),
]


@pytest.mark.parametrize("data", TOO_LONG)
async def test_a_message_that_announces_too_much_is_refused_before_its_bytes(rig: Rig, data: bytes) -> None:
    assert await close_code(rig, data) == WSCloseCode.MESSAGE_TOO_BIG
    assert all(size <= MIB for _, size in rig.messages)


async def test_a_head_that_comes_byte_by_byte_is_no_way_past_the_limit(rig: Rig) -> None:
    head = frame_head(WSMsgType.BINARY, MAX_TEXT_BYTES + 1)
    assert await close_code(rig, *(bytes([byte]) for byte in head)) == WSCloseCode.MESSAGE_TOO_BIG
    assert rig.messages == []


async def test_texts_up_to_the_limit_and_then_large_binary_messages_are_taken(rig: Rig) -> None:
    text, half = b"x" * MAX_TEXT_BYTES, b"x" * (MAX_TEXT_BYTES // 2)
    upload = frame(WSMsgType.BINARY, bytes(10 * MIB))
    sent = [
        UPGRADE + PING + frame(WSMsgType.TEXT, text),
        upload,
        frame(WSMsgType.TEXT, half, last=False) + frame(WSMsgType.CONTINUATION, half),
        *(bytes([byte]) for byte in frame(WSMsgType.TEXT, b"last")),
    ]
    _, writer = await rig.connect(*sent)

    async def all_taken() -> bool:
        return len(rig.messages) == 4

    await eventually(all_taken)
    writer.close()
    assert rig.messages == [
        (WSMsgType.TEXT, MAX_TEXT_BYTES),
        (WSMsgType.BINARY, 10 * MIB),
        (WSMsgType.TEXT, MAX_TEXT_BYTES),
        (WSMsgType.TEXT, 4),
    ]


class Payload:
    """Something large in a frame."""


async def refuse(payload: Payload) -> None:
    await asyncio.sleep(0)
    raise BadRequest(f"{payload} is refused.")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Circles stay for as long as the test lasts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_nothing_of_a_refused_message_stays_in_a_circle() -> None:
    payload = Payload()
    left = weakref.ref(payload)
    try:
        await _first_of(refuse(payload), asyncio.sleep(WAIT_S))
    except BadRequest:
        del payload
    await asyncio.sleep(0)  # what woke this task held the exception until here
    assert left() is None


# Requests that are never whole, or none


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: local", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: y"]
)
async def test_a_connection_without_a_whole_request_is_closed(
    rig: Rig, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "IDLE_S", 0.2)
    answer = await rig.answer(sent)
    assert answer.count(b"HTTP/1.1 200 OK") == sent.count(b"\r\n\r\n")


async def test_a_request_under_way_is_not_idle(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "IDLE_S", 0.05)
    reader, writer = await rig.connect(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
    for _ in range(10):
        await asyncio.sleep(0.05)
        writer.write(b"x")
    async with asyncio.timeout(WAIT_S):
        assert b"taken" in await reader.read()
    writer.close()


async def test_a_client_that_never_reads_is_dropped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "UNREAD_S", 0.2)
    with socket.create_connection(("127.0.0.1", rig.port)) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: rig.endless)
        await until(lambda: not rig.endless)


async def test_a_client_that_begins_no_more_than_a_head_is_dropped_though_it_sends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "IDLE_S", 0.2)
    reader, writer = await rig.connect(b"GET / HTTP/1.1\r\nX: ")

    async def is_dropped() -> bool:
        writer.write(b"x")
        return reader.at_eof() or writer.is_closing()

    await eventually(is_dropped)
    writer.close()


@pytest.mark.parametrize(
    ("code", "status", "request_"),
    [
        ("malformed_request", 400, b"\x16\x03\x01 hello\r\n\r\n"),
        ("malformed_request", 400, b"GET / HTTP/9.9\r\n\r\n"),
        ("malformed_request", 400, b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n"),
        ("malformed_request", 400, b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
        ("headers_too_large", 431, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"),
        ("headers_too_large", 431, b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n"),
    ],
)
async def test_what_is_no_http_is_answered_with_a_problem(
    rig: Rig, code: str, status: int, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head, _, body = (await rig.answer(request_)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert b"\r\nServer: faceswap\r\n" in head + b"\r\n"
    assert b"\r\nContent-Type: application/problem+json; charset=utf-8" in head
    assert (json.loads(body)["code"], json.loads(body)["status"]) == (code, status)
    assert "aiohttp" not in (head + body).decode()
    assert caplog.records == []


# What is long to parse


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the size of each read."""
    reads: list[int] = []
    get_buffer = Connection.get_buffer

    def noted(self: Connection, sizehint: int) -> memoryview:
        buffer = get_buffer(self, sizehint)
        reads.append(len(buffer))
        return buffer

    monkeypatch.setattr(Connection, "get_buffer", noted)
    return reads


async def test_what_is_long_to_parse_is_read_in_small_pieces(rig: Rig, reads: list[int]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, writer = await rig.connect(head)
    writer.write(b"1\r\nx\r\n" * 200_000)

    async def small() -> bool:
        return bool(reads) and min(reads) <= 16 * LEAST_READ_BYTES

    await eventually(small)
    writer.close()
    assert reads[0] == MOST_READ_BYTES


async def test_what_is_parsed_at_once_is_read_in_large_pieces(rig: Rig, reads: list[int]) -> None:
    size = 32 * MIB
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode()
    assert b"taken" in await rig.answer(head, bytes(size))
    assert rig.body_bytes == size
    reads.sort()
    assert reads[len(reads) // 2] == MOST_READ_BYTES


# Descriptors


@pytest.fixture
def few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for two connections, the one that is waited for included."""
    monkeypatch.setattr(connection_module, "raise_descriptor_limit", lambda: 8)


@pytest.mark.usefixtures("few_descriptors")
async def test_more_connections_than_descriptors_allow_wait_for_their_turn(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    served = [await rig.connect(request) for _ in range(2)]
    async with asyncio.timeout(WAIT_S):
        for reader, _ in served:
            await reader.readuntil(b"here")
        waiting = [await rig.connect(request) for _ in range(3)]
        for _, writer in served:
            writer.close()
        for reader, writer in waiting:
            await reader.readuntil(b"here")
            writer.close()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message for record in warnings] == ["all connections are in use; new ones wait"]


async def test_descriptors_that_run_out_are_told_once_and_waited_for(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    failures = [errno.EMFILE] * 20 + [errno.ECONNABORTED]

    async def failing(listener: socket.socket) -> Any:
        if failures:
            raise OSError(number := failures.pop(0), os.strerror(number))
        return await accept(listener)

    monkeypatch.setattr(connection_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(loop, "sock_accept", failing)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for _ in range(2):  # the first is accepted by the call that waited before
        assert b"here" in await rig.answer(request)
    assert failures == []
    assert caplog.messages == ["connections cannot be accepted: Too many open files"]


def test_the_limit_of_descriptors_is_raised_as_far_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, Any] = {"now": (64, 500)}
    monkeypatch.setattr(connection_module.resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(connection_module.resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    assert connection_module.raise_descriptor_limit() == 500
    assert limits["now"] == (500, 500)
    assert connection_module.raise_descriptor_limit() == 500
