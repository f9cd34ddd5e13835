"""Connections: accepting, reading and limiting them before a request or a message is whole."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import WSMsgType, hdrs, web
from aiohttp.http_exceptions import LineTooLong

from ..errors import BadRequest, HeadersTooLarge, Problem
from ..intake import MAX_TEXT_BYTES
from .access_log import AccessLog
from .middleware import SERVER_NAME, problem_response

log = logging.getLogger(__name__)

IDLE_S = 30.0
"""The longest time for the headers of a request to arrive, and for a connection to stay open without a request."""
UNREAD_S = 120.0
"""The time after which a client is dropped that does not read, or is gone without a word."""
BACKLOG = 128
WANTED_DESCRIPTORS = 65536
DESCRIPTORS_A_CONNECTION = 4
"""The descriptors kept for each connection: its own, two for files or a socket to another server, and a share for
database, engines and media processes, which connections must never starve."""
PAUSE_S = 1.0
"""The pause after a connection could not be accepted."""
WARN_S = 60.0
"""The time between two log lines about connections that have to wait."""
LEAST_READ_BYTES, MOST_READ_BYTES = 1024, 256 * 1024
LONG_S, SHORT_S = 0.0005, 0.00015
"""A read whose parsing takes more processor time than `LONG_S` halves the next one; less than `SHORT_S` doubles it."""


class Connection(web.RequestHandler, asyncio.BufferedProtocol):
    """A client's connection. Bytes that take long to parse are read in small pieces, so that others get their turn.

    Chunks, frames or requests of a few bytes each cost a hundred times more than the same bytes in one piece.
    """

    __slots__ = ("_buffer", "_on_lost", "_read_bytes")

    def __init__(
        self, server: web.Server, buffer: memoryview, on_lost: Callable[[], None], access_log: logging.Logger | None
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log_class=AccessLog,
            access_log=access_log,  # type: ignore[arg-type]  # as its own runner says "none"
            keepalive_timeout=IDLE_S,
            read_bufsize=len(buffer),
        )
        self._buffer = buffer
        self._on_lost = on_lost
        self._read_bytes = len(buffer)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Free the connection's place."""
        super().connection_lost(exc)
        self._on_lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer for the transport's next read."""
        return self._buffer[: self._read_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        """Parse the bytes read, and choose the size of the next read by the processor time that took.

        It is not looked at for few bytes, as of most requests: reads are never that small unless parsing is slow.
        """
        if nbytes <= LEAST_READ_BYTES < self._read_bytes:
            self.data_received(bytes(self._buffer[:nbytes]))
            return
        started = time.thread_time()
        self.data_received(bytes(self._buffer[:nbytes]))
        taken_s = time.thread_time() - started
        if taken_s > LONG_S:
            self._read_bytes = max(self._read_bytes // 2, LEAST_READ_BYTES)
        elif taken_s < SHORT_S:
            self._read_bytes = min(self._read_bytes * 2, len(self._buffer))

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """Put a check of announced sizes in front of the reader of a WebSocket's frames."""
        limited: Any = _MessageLimit(parser)
        super().set_parser(limited, data_received_cb)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that reached no handler as `application/problem+json`; the connection is closed."""
        if status >= 500:
            log.error("a request failed outside of its handler", exc_info=exc)
        if request.writer.output_size:
            raise ConnectionError("another answer has begun")
        response = problem_response(_parse_problem(status, exc))
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.force_close()
        return response


def _parse_problem(status: int, exc: BaseException | None) -> Problem:
    if status >= 500:
        return Problem("Something went wrong inside the service; its log says what.")
    if isinstance(exc, LineTooLong):
        return HeadersTooLarge("The address or a header of the request is too long.")
    return BadRequest("The request is not well-formed HTTP.", code="malformed_request")


class _Reader(Protocol):
    def feed_data(self, data: bytes, /) -> tuple[bool, bytes]: ...

    def feed_eof(self) -> None: ...


class _MessageLimit:
    """A check in front of aiohttp's reader that refuses messages by the sizes that their frames announce.

    The reader has one limit for all messages. Here the first message and every text have the limit of JSON over HTTP,
    and later binary messages that of the reader. Only whole frame heads are passed on.
    """

    IMPOSSIBLE = b"\x82\xff" + b"\xff" * 8
    """A head that announces 2⁶⁴ - 1 bytes: the reader refuses the message as too large and closes the socket."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._head = b""
        self._missing = 0
        """The bytes of the current frame's payload that have not arrived yet."""
        self._is_first = True
        self._is_text = False
        self._message_bytes = 0

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        data, end = self._head + data, 0
        while True:
            taken = min(self._missing, len(data) - end)
            self._missing -= taken
            end += taken
            head = None if self._missing else _FrameHead.parse(data, end)
            if head is None:
                break
            if not self._allows(head):
                return self._reader.feed_data(data[:end] + self.IMPOSSIBLE)
            end += head.length
            self._missing = head.payload_bytes
        self._head = data[end:]
        return self._reader.feed_data(data[:end])

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def _allows(self, head: _FrameHead) -> bool:
        if head.kind not in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            return True  # a control frame: at most 125 bytes, as the reader checks
        if head.kind != WSMsgType.CONTINUATION:
            self._is_text = head.kind == WSMsgType.TEXT
            self._message_bytes = 0
        self._message_bytes += head.payload_bytes
        if (self._is_first or self._is_text) and self._message_bytes > MAX_TEXT_BYTES:
            return False
        self._is_first = self._is_first and not head.is_last
        return True


class _FrameHead:
    """The head of a WebSocket frame (RFC 6455, 5.2)."""

    def __init__(self, kind: int, is_last: bool, payload_bytes: int, length: int) -> None:
        self.kind = kind
        self.is_last = is_last
        self.payload_bytes = payload_bytes
        self.length = length

    @classmethod
    def parse(cls, data: bytes, start: int) -> _FrameHead | None:
        """Parse the head at a place in the data; returns None when it has not arrived whole."""
        if len(data) < start + 2:
            return None
        size = data[start + 1] & 0x7F
        extended = {126: 2, 127: 8}.get(size, 0)
        length = 2 + extended + (4 if data[start + 1] & 0x80 else 0)
        if len(data) < start + length:
            return None
        if extended:
            (size,) = struct.unpack_from(">H" if extended == 2 else ">Q", data, start + 2)
        return cls(data[start] & 0x0F, bool(data[start] & 0x80), size, length)


class Listener:
    """Accepts connections, at most a quarter as many at a time as the process may have descriptors open.

    asyncio's own server logs a traceback for every connection it cannot accept, thousands in a second.
    """

    def __init__(self, server: web.Server, access_log: logging.Logger | None = None) -> None:
        self._server = server
        self._access_log = access_log
        self._sockets: list[socket.socket] = []
        self._free = asyncio.Semaphore(raise_descriptor_limit() // DESCRIPTORS_A_CONNECTION)
        self._buffer = memoryview(bytearray(MOST_READ_BYTES))
        """Shared by all connections: its content is copied before another connection is read."""
        self._warned_at = -WARN_S

    async def bind(self, host: str, port: int) -> tuple[str, int]:
        """Listen on every address of a host; returns the first, with its port. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and self._sockets:
                    continue  # such as ::1 of `localhost` on a machine without IPv6
                raise
            listener.setblocking(False)
            self._sockets.append(listener)
        name: tuple[str, int] = self._sockets[0].getsockname()[:2]
        return name

    def close(self) -> None:
        """Stop listening."""
        for listener in self._sockets:
            listener.close()

    async def run(self) -> None:
        """Accept until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for listener in self._sockets:
                tasks.create_task(self._accept(listener, tasks), name="accept")

    async def _accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._free.locked():
                self._warn("all connections are in use; new ones wait")
            await self._free.acquire()
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._free.release()
                if error.errno != errno.ECONNABORTED:
                    self._warn(f"connections cannot be accepted: {error.strerror}")
                    await asyncio.sleep(PAUSE_S)
                continue
            tasks.create_task(self._connect(client), name="connect")

    async def _connect(self, client: socket.socket) -> None:
        """Start a connection; an error of one that has already ended is logged and does not stop the service."""
        try:
            if sys.platform == "linux":  # whose kernel also counts the time in which the client's window is closed
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))
            await asyncio.get_running_loop().connect_accepted_socket(self._new_connection, client)
        except OSError as error:
            self._free.release()
            client.close()
            log.info("a connection ended before it began: %s", error.strerror)

    def _new_connection(self) -> Connection:
        return Connection(self._server, self._buffer, self._free.release, self._access_log)

    def _warn(self, message: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARN_S:
            self._warned_at = now
            log.warning("%s", message)


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as allowed and needed; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
