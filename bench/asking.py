"""Clients that cost little themselves: requests over many connections, each answer timed and thrown away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from yarl import URL

GOOD = (b"HTTP/1.1 200", b"HTTP/1.1 206")


@dataclass(frozen=True)
class Asked:
    """The answers to some requests."""

    seconds: float
    """The time of all together."""
    times_ms: list[float]
    """The time of each."""

    @property
    def a_second(self) -> float:
        """The requests answered in a second."""
        return len(self.times_ms) / self.seconds


class Asker(asyncio.Protocol):
    """One connection, which sends the next request when the last one is answered."""

    def __init__(self, requests: Iterator[bytes], times_ms: list[float], ended: asyncio.Future[None]) -> None:
        self._requests = requests
        self._times_ms = times_ms
        self._ended = ended
        self._head = b""
        self._missing = 0
        """Bytes of the body that have not come yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            self._ended.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(GOOD), head
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            self._head, self._missing = b"", int(length) - len(body)
        if self._missing == 0:
            self._times_ms.append((time.perf_counter() - self._sent) * 1000)
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(ConnectionError(f"the server closed a connection: {exc}"))


async def ask(url: URL, requests: Sequence[Sequence[bytes]]) -> Asked:
    """Send the requests of each connection one after the other, all connections at once."""
    loop, times_ms = asyncio.get_running_loop(), list[float]()
    started, ends = time.perf_counter(), [loop.create_future() for _ in requests]
    for own, end in zip(requests, ends, strict=True):
        await loop.create_connection(partial(Asker, iter(own), times_ms, end), url.host, url.port)
    await asyncio.gather(*ends)
    return Asked(time.perf_counter() - started, times_ms)


def get(url: URL, path: str, *headers: str) -> bytes:
    """Return a GET request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {url.authority}", *headers, "", ""]).encode()
