"""Fetching of users' URLs, from public addresses only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from ..errors import BadRequest, TooLarge, Unprocessable
from ..url_guard import AddressRefused, UrlGuard, check_url, not_allowed

MAX_REDIRECTS = 5
STALL_S = 30.0
"""The longest wait for the next byte, in seconds."""
TOTAL_S = 1800.0
"""The longest time of a whole fetch, redirects included, in seconds."""

_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})


class Fetcher:
    """Fetches foreign URLs from the addresses that a guard allows.

    It may be created without an event loop, and is used in one.
    """

    def __init__(self, guard: UrlGuard) -> None:
        self.guard = guard
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections; fetches under way fail."""
        if self._session is not None:
            await self._session.close()

    async def fetch(
        self,
        field: str,
        url: URL,
        receive: Callable[[bytes], Awaitable[None]],
        max_bytes: int,
        expect: Callable[[int], Awaitable[None]],
    ) -> None:
        """Pass the body of `url` to `receive`, piece by piece; memory does not grow with its size.

        `expect` is called first, with the most bytes that will come. `field` names the URL in error messages. Raises
        `Unprocessable` with code `url_not_allowed`, `url_unreachable`, `url_failed` or `url_timeout`, `TooLarge` with
        `url_too_large`, and any exception of `receive` and `expect`.
        """
        try:
            async with asyncio.timeout(TOTAL_S), self._open(field, url) as response:
                await self._read(field, response, receive, max_bytes, expect)
        except TimeoutError:
            raise Unprocessable(f"'{field}' did not answer in time.", code="url_timeout") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise not_allowed(field) from None
            raise Unprocessable(f"'{field}' names a server that cannot be reached.", code="url_unreachable") from None
        except aiohttp.InvalidURL:
            raise Unprocessable(f"'{field}' names no host.", code="url_unreachable") from None
        except aiohttp.ClientError:
            raise Unprocessable(f"'{field}' could not be read to its end.", code="url_failed") from None

    @asynccontextmanager
    async def _open(self, field: str, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open the response at the end of the redirects, each of which must pass the same checks as the first URL."""
        for _ in range(MAX_REDIRECTS + 1):
            async with self._client().get(url, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECT_STATUSES or location is None:
                    yield response
                    return
            try:
                url = check_url(field, str(url.join(URL(location))))
            except (ValueError, BadRequest):
                raise Unprocessable(f"'{field}' redirects to an unusable address.", code="url_not_allowed") from None
        raise Unprocessable(f"'{field}' redirects more than {MAX_REDIRECTS} times.", code="url_failed")

    async def _read(
        self,
        field: str,
        response: aiohttp.ClientResponse,
        receive: Callable[[bytes], Awaitable[None]],
        max_bytes: int,
        expect: Callable[[int], Awaitable[None]],
    ) -> None:
        if response.status != 200:
            raise Unprocessable(f"'{field}' answered with HTTP status {response.status}.", code="url_failed")
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise Unprocessable(f"'{field}' answered with compressed content.", code="url_failed")
        too_large = TooLarge(f"'{field}' holds more than {max_bytes:,} bytes.", code="url_too_large")
        if (response.content_length or 0) > max_bytes:
            raise too_large
        await expect(max_bytes if response.content_length is None else response.content_length)
        received = 0
        while piece := await response.content.readany():
            received += len(piece)
            if received > max_bytes:
                raise too_large
            await receive(piece)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self.guard.session(STALL_S)
        return self._session
