"""URLs out: what is read, what is refused, and that no spelling leads to a private address."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from yarl import URL

from faceswap.errors import Problem, TooLarge
from faceswap.intake import fetch as fetch_module
from faceswap.intake.fetch import Fetcher
from faceswap.url_guard import UrlGuard, check_url

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = bytes(range(256)) * 4000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A server on 127.0.0.1 that notes the requests it gets."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        handler: Handler = getattr(self, f"on_{request.match_info['name']}")
        return await handler(request)

    async def on_clip(self, request: web.Request) -> web.StreamResponse:
        response = web.Response(body=BODY)
        response.set_cookie("session", "secret")
        return response

    async def on_chunked(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(BODY), 10_000):
            await response.write(BODY[start : start + 10_000])
        return response

    async def on_compressed(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(BODY), headers={"Content-Encoding": "gzip"})

    async def on_missing(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    async def on_redirect(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": request.query["to"]})

    async def on_hop(self, request: web.Request) -> web.StreamResponse:
        left = int(request.query["left"])
        return web.Response(status=307, headers={"Location": f"/hop?left={left - 1}" if left > 1 else "/clip#part"})

    async def on_cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
        await response.prepare(request)
        await response.write(BODY[:1000])
        assert request.transport is not None
        request.transport.close()
        return response

    async def on_stalled(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(BODY[:1000])
        await asyncio.Event().wait()
        return response

    async def on_dripping(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.01)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{name}", site.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(UrlGuard(LOOPBACK))
    yield fetcher
    await fetcher.close()


@pytest.fixture
async def strict_fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(UrlGuard())
    yield fetcher
    await fetcher.close()


async def expect_anything(size: int) -> None:
    """Have room for any size."""


async def fetch(fetcher: Fetcher, url: str, max_bytes: int = 10**9) -> bytes:
    received = bytearray()

    async def receive(piece: bytes) -> None:
        received.extend(piece)

    await fetcher.fetch("video_url", check_url("video_url", url), receive, max_bytes, expect_anything)
    return bytes(received)


async def refusal(fetcher: Fetcher, url: str, max_bytes: int = 10**9) -> Problem:
    with pytest.raises(Problem) as caught:
        await fetch(fetcher, url, max_bytes)
    assert "video_url" in caught.value.detail
    return caught.value


@pytest.mark.parametrize("path", ["/clip", "/chunked", "/hop?left=5"])
async def test_a_body_is_read_whole(site: Site, fetcher: Fetcher, path: str) -> None:
    assert await fetch(fetcher, site.url(path)) == BODY


async def test_a_host_name_is_looked_up(site: Site, fetcher: Fetcher) -> None:
    assert await fetch(fetcher, site.url("/clip", "localhost")) == BODY


async def test_nothing_of_the_service_is_sent_along(
    site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    for _ in range(2):
        await fetch(fetcher, site.url("/clip"))
    headers = site.requests[-1].headers
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/missing", 422, "url_failed"),
        ("/compressed", 422, "url_failed"),
        ("/cut", 422, "url_failed"),
        ("/hop?left=6", 422, "url_failed"),
    ],
)
async def test_an_answer_that_is_no_file_is_refused(
    site: Site, fetcher: Fetcher, path: str, status: int, code: str
) -> None:
    problem = await refusal(fetcher, site.url(path))
    assert (problem.status, problem.code) == (status, code)


async def test_the_http_status_is_named(site: Site, fetcher: Fetcher) -> None:
    assert "404" in (await refusal(fetcher, site.url("/missing"))).detail


@pytest.mark.parametrize("path", ["/clip", "/chunked"])
async def test_a_body_above_the_limit_is_refused_and_not_read_on(site: Site, fetcher: Fetcher, path: str) -> None:
    problem = await refusal(fetcher, site.url(path), len(BODY) - 1)
    assert isinstance(problem, TooLarge)
    assert problem.code == "url_too_large"
    assert await fetch(fetcher, site.url(path), len(BODY)) == BODY


async def test_a_server_that_stalls_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "STALL_S", 0.1)
    fetcher = Fetcher(UrlGuard(LOOPBACK))
    assert (await refusal(fetcher, site.url("/stalled"))).code == "url_timeout"
    await fetcher.close()


async def test_a_server_that_drips_is_given_up(site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "TOTAL_S", 0.2)
    assert (await refusal(fetcher, site.url("/dripping"))).code == "url_timeout"


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example.com ESMTP\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_server_that_speaks_bad_http_is_refused(fetcher: Fetcher, answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert (await refusal(fetcher, f"http://127.0.0.1:{port}/")).code in ("url_failed", "url_not_allowed")


async def test_a_closed_port_is_unreachable(fetcher: Fetcher) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        problem = await refusal(fetcher, f"http://127.0.0.1:{closed.getsockname()[1]}/")
    assert (problem.status, problem.code) == (422, "url_unreachable")
    assert "127.0.0.1" not in problem.detail


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a b", "999.1.1.1", "%25"])
async def test_an_unknown_host_is_unreachable(fetcher: Fetcher, host: str) -> None:
    assert (await refusal(fetcher, f"http://{host}/")).code == "url_unreachable"


async def test_what_the_receiver_raises_comes_through(site: Site, fetcher: Fetcher) -> None:
    async def receive(piece: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await fetcher.fetch("video_url", URL(site.url("/clip")), receive, 10**9, expect_anything)


# Addresses

NO_HOSTS = ("127.1", "2130706433", "0177.0.0.1")
"""Numbers that only some programs take for an address; aiohttp does not."""


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "①②⑦.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
    ],
)
async def test_no_spelling_of_a_private_address_is_connected_to(site: Site, strict_fetcher: Fetcher, host: str) -> None:
    problem = await refusal(strict_fetcher, site.url("/clip", host))
    assert problem.status == 422
    assert problem.code == ("url_unreachable" if host in NO_HOSTS else "url_not_allowed")
    assert not site.requests


async def test_only_the_listed_networks_are_excepted(site: Site) -> None:
    fetcher = Fetcher(UrlGuard((ipaddress.ip_network("127.0.0.2/32"),)))
    problem = await refusal(fetcher, site.url("/clip"))
    await fetcher.close()
    assert problem.code == "url_not_allowed"


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.2:{port}/clip", "http://[::ffff:127.0.0.2]:{port}/clip", "//0x7f000002:{port}/clip"],
)
async def test_a_redirect_to_a_private_address_is_refused(site: Site, target: str) -> None:
    fetcher = Fetcher(UrlGuard((ipaddress.ip_network("127.0.0.1/32"),)))
    url = URL(site.url("/redirect")).with_query(to=target.format(port=site.port))
    problem = await refusal(fetcher, str(url))
    await fetcher.close()
    assert problem.code == "url_not_allowed"
    assert [request.path for request in site.requests] == ["/redirect"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://user:pass@127.0.0.1/", "http://h:22/", "http://xn--/"]
)
async def test_a_redirect_is_held_to_the_rules_of_a_url(site: Site, fetcher: Fetcher, target: str) -> None:
    url = URL(site.url("/redirect")).with_query(to=target)
    problem = await refusal(fetcher, str(url))
    assert (problem.status, problem.code) == (422, "url_not_allowed")
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    ("path", "expected"), [("/clip", len(BODY)), ("/chunked", 2 * len(BODY))], ids=["announced", "not announced"]
)
async def test_how_much_may_come_is_told_before_it_comes(
    site: Site, fetcher: Fetcher, path: str, expected: int
) -> None:
    told: list[int] = []

    async def receive(piece: bytes) -> None:
        told.append(-len(piece))

    async def expect(size: int) -> None:
        told.append(size)

    await fetcher.fetch("video_url", URL(site.url(path)), receive, 2 * len(BODY), expect)
    assert told[0] == expected
    assert sum(told[1:]) == -len(BODY)
