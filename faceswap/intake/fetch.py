"""Fetching of users' URLs, from public addresses only."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from .. import __version__
from ..config import Network
from ..errors import BadRequest, TooLarge, Unprocessable

MAX_URL_LENGTH = 4096
MAX_REDIRECTS = 5
CONNECT_S = 15.0
"""The longest wait for a name and a connection, in seconds."""
STALL_S = 30.0
"""The longest wait for the next byte, in seconds."""
TOTAL_S = 1800.0
"""The longest time of a whole fetch, redirects included, in seconds."""

_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_NOT_PUBLIC = (ipaddress.ip_network("192.88.99.0/24"), ipaddress.ip_network("3fff::/20"))
"""The relays of 6to4 (RFC 7526) and addresses for documentation (RFC 9637), which Python takes to be global."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_HEADERS = {"User-Agent": f"faceswap/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _AddressRefused(OSError):
    """The socket factory's refusal; an OSError, so that the connector tries the host's next address."""


def check_url(field: str, text: object) -> URL:
    """Parse the URL a user gave in `field`: http or https, with a host and without a password. Raises `BadRequest`.

    Ports below 1024 other than 80 and 443 belong to other protocols and are refused. The host's addresses are checked
    on connecting, not here.
    """
    allowed = "an http:// or https:// address with a host, without user name and password"
    if not isinstance(text, str) or len(text) > MAX_URL_LENGTH:
        raise BadRequest(f"'{field}' must be {allowed}, of at most {MAX_URL_LENGTH} characters.", code="invalid_url")
    try:
        url = URL(text.strip())
        port = url.port or 0
        host = url.host  # decoded: a label may be none that is allowed
        (url.raw_host or "").encode("idna")  # the look-up would fail on a label that is empty or too long
    except ValueError:
        url, port, host = URL(), 0, None
    if url.scheme not in ("http", "https") or not host or url.user is not None or url.password is not None:
        raise BadRequest(f"'{field}' must be {allowed}.", code="invalid_url")
    if port not in (80, 443) and port < 1024:
        raise BadRequest(f"'{field}' must use port 80, 443 or one from 1024 on.", code="invalid_url")
    return url.with_fragment(None)


def effective_address(address: Address) -> Address:
    """Unwrap IPv4 carried in IPv6 (mapped, RFC 4291; NAT64, RFC 6052), which is where packets really go."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Tell whether an effective address belongs to a host of the public Internet."""
    if isinstance(address, ipaddress.IPv6Address) and (address not in _GLOBAL_UNICAST or address in _SIX_TO_FOUR):
        return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class Fetcher:
    """Fetches foreign URLs from public addresses, and from the private ones that `allow` lists.

    Each socket's address is checked when it is connected, so neither a redirect, nor an odd spelling of an IP address,
    nor a name that resolves differently the second time leads to a private one. No cookies, no credentials, no proxy
    from the environment. It may be created without an event loop, and is used in one.
    """

    def __init__(self, allow: tuple[Network, ...] = ()) -> None:
        self._allow = allow
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
            if isinstance(error.os_error, _AddressRefused):
                raise Unprocessable(f"'{field}' leads to a non-public address.", code="url_not_allowed") from None
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
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(socket_factory=self._open_socket, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_S, sock_read=STALL_S),
                auto_decompress=False,
                headers=_HEADERS,
            )
        return self._session

    def _open_socket(self, target: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, where = target
        address = effective_address(ipaddress.ip_address(str(where[0])))
        if not is_public(address) and not any(address in network for network in self._allow):
            raise _AddressRefused("not a public address")
        return socket.socket(family, kind, protocol)
