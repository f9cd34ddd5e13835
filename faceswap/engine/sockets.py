"""The engine's WebSockets: each has a bounded queue and a writer of its own."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from typing import Any

from aiohttp import WSCloseCode, web

from .faults import FaultSwitch

OUTBOX_FRAMES = 2000
"""A reader this far behind (over half a minute of a running prompt) is cut off."""

GOODBYE_S = 2.0
"""Bound of the closing of all sockets."""

_PREVIEW_WITH_METADATA = 4


class Socket:
    """One connection. `put` never waits; frames go out in order."""

    def __init__(self, request: web.Request, response: web.WebSocketResponse, faults: FaultSwitch) -> None:
        self.wants_previews = False
        """The client announced `supports_preview_metadata`."""
        self._request = request
        self._response = response
        self._faults = faults
        self._outbox: asyncio.Queue[str | bytes] = asyncio.Queue(OUTBOX_FRAMES)

    def put(self, frame: str | bytes) -> None:
        """Queue a frame; cut off a client whose queue is full."""
        try:
            self._outbox.put_nowait(frame)
        except asyncio.QueueFull:
            self.abort()

    def abort(self) -> None:
        """Cut the connection without a closing handshake."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def close(self) -> None:
        """Close the connection because the server is going away."""
        await self._response.close(code=WSCloseCode.GOING_AWAY)

    async def write(self) -> None:
        """Send the queued frames until the connection ends."""
        sent = 0
        while not self._response.closed:
            frame = await self._outbox.get()
            faults = self._faults.now
            if sent == faults.ws_drop_after:
                self.abort()
                return
            if faults.ws_delay_s:
                await asyncio.sleep(faults.ws_delay_s)
            for _ in range(0 if faults.ws_deaf else 2 if faults.ws_duplicate else 1):
                await self._send(frame)
            sent += 1

    async def _send(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            await self._response.send_str(frame)
        else:
            await self._response.send_bytes(frame)


class Sockets:
    """All open sockets, by client id. Each of several sockets of one id gets every frame."""

    def __init__(self) -> None:
        self._by_client: dict[str, set[Socket]] = {}

    def add(self, client_id: str, socket: Socket) -> None:
        """Add a client's socket."""
        self._by_client.setdefault(client_id, set()).add(socket)

    def remove(self, client_id: str, socket: Socket) -> None:
        """Remove a client's socket."""
        sockets = self._by_client[client_id]
        sockets.discard(socket)
        if not sockets:
            del self._by_client[client_id]

    def send(self, client_id: str | None, kind: str, data: dict[str, Any]) -> None:
        """Send a frame to the sockets of one client; to nobody without a client id."""
        if sockets := self._by_client.get(client_id or ""):
            frame = message(kind, data)
            for socket in sockets:
                socket.put(frame)

    def broadcast(self, kind: str, data: dict[str, Any]) -> None:
        """Send a frame to every socket."""
        frame = message(kind, data)
        for sockets in self._by_client.values():
            for socket in sockets:
                socket.put(frame)

    def preview(self, client_id: str | None, jpeg: bytes, metadata: dict[str, Any]) -> None:
        """Send a JPEG with its metadata to the sockets that asked for such frames.

        Clients that did not ask get none: ReActor sends none, and some take any binary frame for the result.
        """
        text = json.dumps(metadata | {"image_type": "image/jpeg"}).encode()
        for socket in self._by_client.get(client_id or "", ()):
            if socket.wants_previews:
                socket.put(struct.pack(">II", _PREVIEW_WITH_METADATA, len(text)) + text + jpeg)

    async def close(self) -> None:
        """Close every socket."""
        sockets = [socket for group in self._by_client.values() for socket in group]
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.gather(*(socket.close() for socket in sockets))


def message(kind: str, data: dict[str, Any]) -> str:
    """Return a text frame of ComfyUI's protocol."""
    return json.dumps({"type": kind, "data": data})
