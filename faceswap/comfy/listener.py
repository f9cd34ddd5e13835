"""The one WebSocket to a ComfyUI, held open for as long as the service runs."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Literal

import aiohttp

from ..clock import monotonic
from .client import ComfyClient, ComfyError
from .messages import Message, parse

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
STABLE_AFTER_S = 5.0


class Listener:
    """A listener for what ComfyUI sends to `client_id`; each message goes to `on_message`.

    ComfyUI replays nothing: what was said while no socket was open is gone, so `on_connect` is called after every
    (re)connect, to ask `/history` and `/queue`. It may return an awaitable, which runs beside the reading; a ComfyError
    from it counts as a lost connection.

    ComfyUI keeps one socket for a client id, the last that opened, and forgets it when any socket of that id closes.
    So the old socket is closed, and its close answered, before the next one opens. After an abrupt drop the server may
    see the old one die only later: the new socket stays open then and never hears anything again. Nothing on this side
    can tell that from a quiet server. Who has a prompt running and hears nothing of it calls `reconnect`; should the
    old socket die after that too, once more after a moment: each dead socket costs at most one reconnect.

    `state` is the connection's, `last_frame_at` a reading of `clock.monotonic`, `reconnects` counts every connect but
    the first.
    """

    def __init__(
        self,
        client: ComfyClient,
        client_id: str,
        on_message: Callable[[Message], None],
        on_connect: Callable[[], Awaitable[None] | None],
    ) -> None:
        self.state: Literal["connecting", "connected", "disconnected"] = "disconnected"
        self.last_frame_at: float | None = None
        self.reconnects = 0
        self._client = client
        self._client_id = client_id
        self._on_message = on_message
        self._on_connect = on_connect
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connected_at: float | None = None
        self._connects = 0
        self._wanted_at_once = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled, connecting again with growing, jittered pauses. Ends with the socket closed.

        What `on_message` or `on_connect` raise is not caught.
        """
        pause = FIRST_PAUSE_S
        while True:
            self._wanted_at_once.clear()
            self.state = "connecting"
            self._connected_at = None
            try:
                await self._listen()
                reason = "closed"
            except ComfyError as error:
                reason = error.message
            finally:
                self.state = "disconnected"
            if self._connected_at is not None and monotonic() - self._connected_at >= STABLE_AFTER_S:
                pause = FIRST_PAUSE_S
            if not self._wanted_at_once.is_set():
                log.info("socket to ComfyUI at %s lost: %s", self._client.url, reason)
            await self._pause(random.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def reconnect(self) -> None:
        """Close the socket and open another without a pause, because the old one's silence is not trusted.

        Returns when that is under way; `on_connect` tells when the new one is open.
        """
        self._wanted_at_once.set()
        if self._socket is not None:
            await self._socket.close()

    async def _listen(self) -> None:
        """Serve one connection from its opening to its end."""
        self._socket = await self._client.open_socket(self._client_id)
        try:
            self.state = "connected"
            self._connected_at = monotonic()
            self.reconnects += self._connects > 0
            self._connects += 1
            reading = self._read(self._socket)
            greeting = self._on_connect()
            await (reading if greeting is None else _read_and_greet(reading, greeting))
        finally:
            await self._socket.close()
            self._socket = None

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in socket:
            self.last_frame_at = monotonic()
            if frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                message = parse(frame.data)
                if message is not None:
                    self._on_message(message)

    async def _pause(self, seconds: float) -> None:
        """Wait, unless another connection is wanted at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._wanted_at_once.wait()
        except TimeoutError:
            pass


async def _read_and_greet(reading: Coroutine[None, None, None], greeting: Awaitable[None]) -> None:
    """Read to the end with the greeting under way beside it; what the greeting raises ends both."""
    reader, greeter = asyncio.create_task(reading), asyncio.ensure_future(greeting)
    try:
        await asyncio.wait((reader, greeter), return_when=asyncio.FIRST_COMPLETED)
        if greeter.done():
            greeter.result()
        await reader
    finally:
        reader.cancel()
        greeter.cancel()
        await asyncio.gather(reader, greeter, return_exceptions=True)
