"""The body of a request as it arrives, with a bound on its size, its pauses and its rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, StreamReader, web

from ..errors import BadRequest, RequestTimeout, TooLarge, UnsupportedMedia

IDLE_S = 60.0
"""The longest wait for the next bytes of a request, in seconds."""
GRACE_S = 600.0
SLOWEST_BYTES_PER_S = 16 * 1024
"""The slowest average rate of a request that lasts longer than `GRACE_S`, counted from then on."""


class BoundedBytes:
    """The bytes of one request as they arrive, with a bound on their number, their pauses and their rate."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], announced: int, max_bytes: int) -> None:
        self.announced = announced
        self._receive = receive
        self._max_bytes = max_bytes
        self._received = 0
        self._deadline = time.monotonic() + GRACE_S
        self._check(announced)

    async def read(self) -> bytes:
        """Return the next bytes, none at the end. Raises `TooLarge`, `RequestTimeout`, or the transport's error."""
        try:
            async with asyncio.timeout(IDLE_S):
                piece = await self._receive()
        except TimeoutError:
            raise RequestTimeout("The upload stalled.", code="upload_stalled") from None
        self._received += len(piece)
        self._check(self._received)
        if time.monotonic() > self._deadline + self._received / SLOWEST_BYTES_PER_S:
            raise RequestTimeout("The upload is too slow.", code="upload_stalled")
        return piece

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLarge(f"The request is larger than {self._max_bytes:,} bytes, the most that is taken.")


def check_uncompressed(request: web.Request) -> None:
    """Raise `UnsupportedMedia` for a compressed body: its size is not what was announced."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("The request must not be compressed.", code="unsupported_content_encoding")


async def defer_continue(_request: web.Request) -> None:
    """Leave `Expect: 100-continue` unanswered until the handler has looked at the headers."""


async def send_continue(request: web.Request) -> None:
    """Ask for the body where the client waits to be asked (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def body_bytes(request: web.Request) -> bytes:
    """Return the next bytes of a request's body, none at its end. Raises `BadRequest` where it was cut off."""
    try:
        return await request.content.readany()
    except TimeoutError:
        raise
    except (OSError, web.RequestPayloadError):
        raise BadRequest("The request's body was cut off.", code="incomplete_body") from None


async def bytes_to_the_cut(request: web.Request) -> bytes:
    """Return the next bytes of a request's body as `body_bytes` does, all that arrived before it was cut off."""
    try:
        return await body_bytes(request)
    except BadRequest:
        if rest := _unread(request.content):
            return rest
        raise


def _unread(content: StreamReader) -> bytes:
    """Return the bytes that are still to be read of a body that was cut off: aiohttp tells of the cut first."""
    error = content.exception()
    content._exception = None
    try:
        return content.read_nowait()
    finally:
        if error is not None:
            content.set_exception(error)
