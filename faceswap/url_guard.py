"""The guard of all URLs that users give: how they may look, and to which addresses connections for them may be made.

Each socket's address is checked when it is connected, so neither a redirect, nor an odd spelling of an IP address, nor
a name that resolves differently the second time leads to a private one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from contextlib import suppress

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from . import __version__
from .config import Network
from .errors import BadRequest, Unprocessable

MAX_URL_LENGTH = 4096
CONNECT_S = 15.0
"""The longest wait for a name and a connection, in seconds."""

LOOK_UPS = 64
"""Names that are looked up at a time for each session."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments (RFC 6890); a cloud's metadata service is among them
    ipaddress.ip_network("192.88.99.0/24"),  # relays of 6to4 (RFC 7526)
    ipaddress.ip_network("2001::/23"),  # protocol assignments (RFC 2928), Teredo among them
    ipaddress.ip_network("2002::/16"),  # 6to4 (RFC 3056), which carries any IPv4 address
    ipaddress.ip_network("3fff::/20"),  # documentation (RFC 9637)
)
"""Networks that Python takes to be global, or does in some of its versions."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_HEADERS = {"User-Agent": f"faceswap/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}

_QUOTED = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")
"""The characters that a URL may have (RFC 3986)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefused(OSError):
    """A connection to an address that is not public; an OSError, so that the host's next address is tried."""


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
    return _as_given(text.strip().partition("#")[0], url.with_fragment(None))


def _as_given(text: str, url: URL) -> URL:
    """Return a URL as it was given, letter by letter, where nothing of it must be quoted: it may be signed."""
    if not _QUOTED.fullmatch(text):
        return url
    given = URL(text, encoded=True)
    return given if given.origin() == url.origin() else url


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
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def not_allowed(field: str) -> Unprocessable:
    """Return the refusal of a URL that leads to an address which is not public."""
    return Unprocessable(f"'{field}' leads to a non-public address.", code="url_not_allowed")


class _SystemResolver(AbstractResolver):
    """Asks the system for addresses, in threads that nothing else waits for: a name server may never answer.

    Those threads end with the process, and are not the ones in which files are read and written.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(LOOK_UPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises `OSError`."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def tell(found: list[ResolveResult] | OSError) -> None:
            self._free.release()
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            found = _addresses(host, port, family)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=look_up, name=f"look-up of {host}", daemon=True).start()
        return await answer

    async def close(self) -> None:
        """Leave the threads to themselves."""


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult] | OSError:
    """Ask the system for the addresses of a host, however long it takes; returns the error where there are none."""
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:
        return OSError("no name that can be looked up")
    except OSError as error:
        return error
    return [
        ResolveResult(
            hostname=host,
            host=str(where[0]),
            port=int(where[1]),
            family=found_family,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for found_family, _, protocol, _, where in found
    ]


class UrlGuard:
    """The addresses that URLs may lead to: public ones, and the private ones that `allow` lists."""

    def __init__(self, allow: tuple[Network, ...] = (), resolver: AbstractResolver | None = None) -> None:
        """Look names up with `resolver` where there is one, else as the system does."""
        self._allow = allow
        self._resolver = resolver

    def check_literal(self, field: str, url: URL) -> None:
        """Refuse a URL whose host is an address that is not allowed; names are looked up on connecting only.

        Raises `Unprocessable`.
        """
        try:
            address = ipaddress.ip_address(url.host or "")
        except ValueError:
            return
        if not self._allows(address):
            raise not_allowed(field)

    def session(self, stall_s: float) -> aiohttp.ClientSession:
        """Open a session whose every connection is guarded; `stall_s` is the longest wait for the next byte.

        No cookies, no credentials, no proxy from the environment, one connection for each request.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=self._open_socket, force_close=True, resolver=self._resolver or _SystemResolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_S, sock_read=stall_s),
            auto_decompress=False,
            headers=_HEADERS,
        )

    def _allows(self, address: Address) -> bool:
        address = effective_address(address)
        return is_public(address) or any(address in network for network in self._allow)

    def _open_socket(self, target: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, where = target
        if not self._allows(ipaddress.ip_address(str(where[0]))):
            raise AddressRefused("not a public address")
        return socket.socket(family, kind, protocol)
