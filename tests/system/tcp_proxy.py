"""A TCP proxy that can be cut, go silent, or lose the answers: a node's way to its database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

_CHUNK_BYTES = 1 << 16


class TcpProxy:
    """Relays connections on a port of 127.0.0.1 to another, as long as nothing is wrong with it."""

    def __init__(self, port: int) -> None:
        """Relay to `port`."""
        self.port = 0
        """The port that it listens on."""
        self._target = port
        self._cut = False
        self._loses_answers = False
        self._drops = 0
        self._passes = asyncio.Event()
        self._passes.set()
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    @property
    def connections(self) -> int:
        """The number of connections that are open."""
        return len(self._connections)

    def cut(self) -> None:
        """Drop every connection without a goodbye, and new ones at once."""
        self._cut = True
        self.drop_connections()

    def hold(self) -> None:
        """Let nothing pass either way; what is sent meanwhile arrives after `heal`. New connections are accepted."""
        self._passes.clear()

    def lose_answers(self) -> None:
        """Let requests pass and answers vanish: who asks cannot tell what was done."""
        self._loses_answers = True

    def heal(self) -> None:
        """Relay again. Connections of which an answer was lost are dropped."""
        if self._loses_answers:
            self.drop_connections()
        self._cut = self._loses_answers = False
        self._passes.set()

    def drop_connections(self) -> None:
        """Drop every connection, those that are being made too; new ones are relayed."""
        self._drops += 1
        for connection in list(self._connections):
            for writer in connection:
                writer.transport.abort()

    def saw_request_bytes(self, count: int) -> None:
        """Take note of bytes that are about to be passed on."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.heal()
            self.drop_connections()
            await server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        drops = self._drops
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        if self._drops != drops:
            writer.transport.abort()
            target_writer.transport.abort()
            return
        connection = (writer, target_writer)
        self._connections.add(connection)
        requests = asyncio.create_task(self._pass_on(reader, target_writer))
        answers = asyncio.create_task(self._pass_on(target_reader, writer, are_answers=True))
        try:
            await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            requests.cancel()
            answers.cancel()
            await asyncio.gather(requests, answers, return_exceptions=True)
            for end in connection:
                end.close()
            self._connections.discard(connection)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, are_answers: bool = False
    ) -> None:
        """Pass on what is read, its end too, as far as the proxy lets it pass."""
        chunk = b"-"
        while chunk:
            chunk = b""
            with contextlib.suppress(ConnectionError):
                chunk = await reader.read(_CHUNK_BYTES)
            await self._passes.wait()
            if not are_answers:
                self.saw_request_bytes(len(chunk))
            if are_answers and self._loses_answers and chunk:
                continue
            with contextlib.suppress(ConnectionError):
                writer.write(chunk)
                await writer.drain()
