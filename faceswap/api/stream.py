"""Event streams: Server-Sent Events or a WebSocket. Live events are written straight to every connection.

Each event is encoded once, however many watch. A task, a queue and a time limit are at work only for the watchers that
are behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from ..events import Event, chunk
from ..feed import Feed
from ..hub import Closing, Lagging
from ..jobs import TERMINAL
from ..store import Store
from .keys import FEED, STORE

KEEPALIVE_S = 15.0
"""The longest silence before a comment line keeps proxies from closing the connection."""
KEEPALIVE_SPREAD = 0.5
"""The share of `KEEPALIVE_S` by which some are earlier: a thousand watchers of one job are not all woken at once."""
WRITE_TIMEOUT_S = 60.0
"""The time after which a watcher that reads nothing is dropped; it resumes by `Last-Event-ID`."""
STILL_HERE = b": still here\n\n"
BEHIND_BYTES = 16 * 1024
"""The bytes that the connection of a watcher may have taken over and not sent, before more are queued as events."""


class Watcher:
    """A client that the events of a job after a number are written to.

    `encode` makes the bytes of an event; `silence` are those that are written when there was none for a while. Nothing
    is written any more once `is_closed`, where it is given, says so.
    """

    def __init__(
        self,
        writer: AbstractStreamWriter,
        encode: Callable[[Event], bytes],
        after: int,
        silence: bytes = b"",
        is_closed: Callable[[], bool] | None = None,
    ) -> None:
        self._writer = writer
        self._encode = encode
        self._after = after
        self._silence = silence
        self._is_closed = is_closed

    async def follow(self, store: Store, feed: Feed, prompt_id: str) -> None:
        """Write the stored events, then the live ones, until the job has ended.

        Raises `Lagging` and `Closing` as the subscription does, `TimeoutError` for a watcher that does not read, and
        `ConnectionError`.
        """
        async with feed.watch(prompt_id) as subscription:
            if await self._replay(store, prompt_id):
                return
            subscription.pass_on = self._pass_on()
            while True:
                live = await subscription.next(KEEPALIVE_S * (1 - random.uniform(0, KEEPALIVE_SPREAD)))
                if live is None:
                    await self._write(self._silence)
                elif live.seq > self._after:
                    await self._send(live)
                    if live.terminal:
                        return

    async def _replay(self, store: Store, prompt_id: str) -> bool:
        """Write the stored events; returns whether the last of them is the job's end.

        What it read is not kept for as long as the stream lasts.
        """
        stored = await store.events(prompt_id, self._after)
        for event in stored:
            await self._send(event)
        # A retried job has ended before: only the last event can be the end.
        return stored[-1].terminal if stored else (await store.job(prompt_id)).state in TERMINAL

    def _pass_on(self) -> Callable[[Event], bool] | None:
        """Return a function that writes a live event at once; None when the connection is gone.

        It returns False when the connection is behind or gone, and for the last event. What it needs is looked up
        beforehand: for a thousand watchers of a job that takes longer than the rest of it, but for the writing.
        """
        writer, transport, encode, is_closed = self._writer, self._writer.transport, self._encode, self._is_closed
        if transport is None:
            return None
        is_closing, waiting_bytes, write = transport.is_closing, transport.get_write_buffer_size, transport.write

        def pass_on(event: Event) -> bool:
            if event.terminal or is_closing() or waiting_bytes() > BEHIND_BYTES or (is_closed and is_closed()):
                return False
            if event.seq > self._after:
                data = encode(event)
                write(data)
                writer.output_size += len(data)  # as below
                self._after = event.seq
            return True

        return pass_on

    async def _send(self, event: Event) -> None:
        self._after = event.seq
        await self._write(self._encode(event))

    async def _write(self, data: bytes) -> None:
        """Write bytes, and wait until the connection has taken them."""
        transport = self._writer.transport
        if transport is None or transport.is_closing() or (self._is_closed and self._is_closed()):
            raise ConnectionResetError
        transport.write(data)
        self._writer.output_size += len(data)  # past the writer of the answer, which would count them
        if transport.get_write_buffer_size():
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._writer.drain()


async def stream_events(request: web.Request, prompt_id: str, after: int) -> web.StreamResponse:
    """Answer with a job's events as `text/event-stream`."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Location": f"/status/{prompt_id}",
        }
    )
    is_chunked = request.version >= HttpVersion11
    if is_chunked:
        response.enable_chunked_encoding()
    await response.prepare(request)
    encode, silence = (Event.chunk, chunk(STILL_HERE)) if is_chunked else (Event.sse, STILL_HERE)
    try:
        try:
            await Watcher(request.writer, encode, after, silence).follow(
                request.app[STORE], request.app[FEED], prompt_id
            )
        except Closing:
            await response.write(b": the service is stopping; come back with Last-Event-ID\n\n")
        await response.write_eof()
    except (Lagging, TimeoutError, ConnectionError):
        # The watcher is gone or too slow; the job continues.
        response.force_close()
        if request.transport is not None:
            request.transport.abort()
    return response


async def send_events(request: web.Request, socket: web.WebSocketResponse, prompt_id: str, after: int) -> None:
    """Send a job's events as text frames of the WebSocket that a request has opened."""
    await Watcher(request.writer, Event.frame, after, is_closed=lambda: socket.closed).follow(
        request.app[STORE], request.app[FEED], prompt_id
    )
