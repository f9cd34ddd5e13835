"""Hostile URLs: none leads to a private address, whatever its spelling, its redirects or its name server say.

The connections are counted at the socket: every `connect` of this process is seen. The one address that may be
connected to, 127.0.0.2, plays the Internet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from name_server import NameServer, serving
from ssrfguard._registry import TABLE, Reach
from stored_jobs import create, opened, sql
from waiting import eventually

from faceswap import outbox as outbox_module
from faceswap.config import Settings
from faceswap.errors import BadRequest, Problem
from faceswap.files import Files
from faceswap.intake.fetch import MAX_REDIRECTS, Fetcher
from faceswap.outbox import Outbox
from faceswap.url_guard import UrlGuard, check_url

INTERNET = "127.0.0.2"
ALLOWED = (ipaddress.ip_network(f"{INTERNET}/32"),)

ADDRESSES = (
    *("127.0.0.1", "127.0.0.3", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    *("192.168.0.1", "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192"),
    *("192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[::ffff:0:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]"),
    *("[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[fd00:ec2::254]"),
    *("[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[100::1]", "[100:0:0:1::1]"),
)
SPELLINGS = (
    *("0", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001"),
    *("①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1", "127.0.0.1.", "%31%32%37.0.0.1", "LOCALHOST", "localhost."),
)
"""Hosts that some programs take for an address: a resolver is asked for them, and may answer with what it likes."""
NAMES: dict[str, list[list[str]]] = {
    f"{str(block.network.network_address).replace('.', '-').replace(':', '-')}.in.test": [
        [str(block.network[min(1, block.network.num_addresses - 1)])]
    ]
    for block in TABLE
    if block.reach is not Reach.PERMITTED
}
"""Names that lead into each network that is not public."""
TRICKS: dict[str, list[list[str]]] = {
    "localhost": [["127.0.0.1", "::1"]],
    "alias.test": [["inner.test"]],
    "chain.test": [["alias.test"]],
    "inner.test": [["127.0.0.1"]],
    "metadata.test": [["169.254.169.254", "fd00:ec2::254"]],
    "mixed.test": [[INTERNET, "127.0.0.1", "::1"]],
    "mixed-too.test": [["127.0.0.1", INTERNET]],
    "six.test": [["::1"]],
    **{f"{host.lower().rstrip('.')}": [["127.0.0.1"]] for host in ("127.1", "0x7f000001", "2130706433", "0")},
}
PARTS = (
    "http://{internet}@127.0.0.1:{trap}/",
    "http://{internet}:80@127.0.0.1:{trap}/",
    "http://127.0.0.1:{trap}#@{internet}/",
    "http://127.0.0.1:{trap}?@{internet}/",
    "http://127.0.0.1:{trap}\\@{internet}/",
    "http://127.0.0.1:{trap}\\.{internet}/",
    "http:\\\\127.0.0.1:{trap}/",
    "http:/127.0.0.1:{trap}/",
    "http:127.0.0.1:{trap}/",
    "http:///127.0.0.1:{trap}/",
    "//127.0.0.1:{trap}/",
    "http://127.0.0.1\t:{trap}/",
    "http://127.0.0.1:{trap}\r\nHost: {internet}/",
    "http://127.0.0.1%00.{internet}:{trap}/",
    "http://127.0.0.1%2f.{internet}:{trap}/",
    "\0http://127.0.0.1:{trap}/",
    "  http://127.0.0.1:{trap}/  ",
    "http://[::1:{trap}/",
    "http://[127.0.0.1]:{trap}/",
    "http://[::ffff:127.0.0.1%25x]:{trap}/",
    "HTTP://127.0.0.1:{trap}/",
    "https://127.0.0.1:{trap}/",
    "http://127.0.0.1:0{trap}/",
    "http://127.0.0.1:22/",
    "http://127.0.0.1:25/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65536/",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "gopher://127.0.0.1:{trap}/_GET%20/",
    "dict://127.0.0.1:{trap}/info",
    "ftp://127.0.0.1:{trap}/",
    "ldap://127.0.0.1:{trap}/",
    "ws://127.0.0.1:{trap}/",
    "jar:http://127.0.0.1:{trap}!/",
    "unix:///var/run/docker.sock",
    "data:text/plain,x",
    "javascript:alert(1)",
)
"""URLs that are not what they seem to be, or of another kind."""
STATUSES = (301, 302, 303, 307, 308)


@dataclass
class Sockets:
    """The connections of this process, while it is watched."""

    connected: list[tuple[str, int]] = field(default_factory=list)
    watching: bool = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note a connection. Called by Python for every socket."""
        if self.watching and event == "socket.connect" and arguments[0].type == socket.SOCK_STREAM:
            self.connected.append(arguments[1][:2])


SOCKETS = Sockets()
sys.addaudithook(SOCKETS.hook)  # it cannot be removed again


@dataclass
class Scene:
    """The Internet, with a site that redirects, and this machine, with a trap at each of its own addresses."""

    guard: UrlGuard
    names: NameServer
    site: int
    trap: int
    trapped: list[Any]

    def urls(self) -> list[str]:
        """Return hostile URLs."""
        hosts = (*ADDRESSES, *SPELLINGS, *NAMES, *TRICKS)
        parts = [part.format(internet=f"{INTERNET}", trap=self.trap) for part in PARTS]
        return list(dict.fromkeys([*(f"http://{host}:{self.trap}/x" for host in hosts), *parts]))

    def chains(self) -> list[str]:
        """Return URLs of the Internet that lead to hostile ones, over so many redirects of every kind."""
        targets = [url for url in self.urls() if url.isprintable()]
        chains = []
        for number, target in enumerate(targets):
            status, hops = STATUSES[number % len(STATUSES)], 1 + number % MAX_REDIRECTS
            url = target
            for _ in range(hops):
                url = f"http://{INTERNET}:{self.site}/{status}?to={quote(url, safe='')}"
            chains.append(url)
        return chains

    def check_connections(self) -> None:
        """Check that nothing but the Internet was connected to."""
        assert set(SOCKETS.connected) <= {(INTERNET, self.site), (INTERNET, self.trap)}
        assert not self.trapped


@asynccontextmanager
async def servers(scene_zone: dict[str, list[list[str]]]) -> AsyncIterator[Scene]:
    trapped: list[Any] = []

    async def spring(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trapped.append(writer.get_extra_info("sockname"))
        writer.close()

    async def redirect(request: web.Request) -> web.StreamResponse:
        if "to" not in request.query:
            return web.Response(body=b"the Internet")
        return web.Response(status=int(request.match_info["status"]), headers={"Location": request.query["to"]})

    app = web.Application()
    app.router.add_route("*", "/{status}", redirect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, INTERNET, 0).start()
    trap = await asyncio.start_server(spring, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    traps = [trap, *[await asyncio.start_server(spring, host, port) for host in own_addresses()]]
    try:
        async with serving(scene_zone) as (names, resolver):
            yield Scene(UrlGuard(ALLOWED, resolver), names, runner.addresses[0][1], port, trapped)
    finally:
        for server in traps:
            server.close()
        await runner.cleanup()


def own_addresses() -> Iterator[str]:
    """Yield further addresses of this machine that can be listened at."""
    for family, host in ((socket.AF_INET, "127.0.0.3"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.bind((host, 0))
        except OSError:
            continue
        yield host


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with servers({**NAMES, **TRICKS}) as scene:
        SOCKETS.connected.clear()
        SOCKETS.watching = True
        try:
            yield scene
        finally:
            SOCKETS.watching = False


async def fetch(guard: UrlGuard, url: str) -> bytes:
    """Fetch a URL as the service fetches a video. Raises `Problem`."""
    received = bytearray()

    async def receive(piece: bytes) -> None:
        received.extend(piece)

    async def expect(size: int) -> None:
        pass

    fetcher = Fetcher(guard)
    try:
        await fetcher.fetch("video_url", check_url("video_url", url), receive, 1000, expect)
    finally:
        await fetcher.close()
    return bytes(received)


async def refused(guard: UrlGuard, urls: list[str]) -> dict[str, str]:
    """Return the code with which each URL was refused."""
    codes = {}
    for url in urls:
        try:
            codes[url] = f"fetched: {await fetch(guard, url)!r}"
        except Problem as problem:
            codes[url] = problem.code
    return codes


async def test_no_hostile_url_is_fetched(scene: Scene) -> None:
    urls = scene.urls()
    codes = await refused(scene.guard, urls)
    assert len(urls) >= 140
    assert set(codes.values()) == {"invalid_url", "url_not_allowed", "url_unreachable"}
    led_inside = [f"http://{host}:{scene.trap}/x" for host in (*ADDRESSES, *NAMES, "inner.test", "alias.test")]
    assert {codes[url] for url in led_inside} == {"url_not_allowed"}
    assert {*NAMES, "inner.test", "alias.test"} <= set(scene.names.asked)
    scene.check_connections()


async def test_no_redirect_leads_to_a_hostile_url(scene: Scene) -> None:
    chains = scene.chains()
    codes = await refused(scene.guard, chains)
    assert len(chains) >= 140
    assert set(codes.values()) <= {"url_not_allowed", "url_unreachable", "invalid_url", "url_failed"}, codes
    assert (INTERNET, scene.site) in SOCKETS.connected
    scene.check_connections()


async def test_a_name_that_leads_elsewhere_later_is_refused_then() -> None:
    zone = {"rebind.test": [[INTERNET], ["127.0.0.1"]]}
    async with servers(zone) as scene:
        url = f"http://rebind.test:{scene.site}/200"
        assert await fetch(scene.guard, url) == b"the Internet"
        assert (await refused(scene.guard, [url])) == {url: "url_not_allowed"}
        assert scene.names.asked.count("rebind.test") == 4


async def test_nothing_is_sent_to_a_hostile_url(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "LOOK_S", 0.02)
    files = Files(tmp_path / "data")
    await files.start()
    files.result("clip.mp4").write_bytes(b"video")
    urls = [url for url in (*scene.urls(), *scene.chains()[:20]) if is_usable(url)]
    assert len(urls) >= 120
    async with opened(files.database) as store:
        job = await create(store, webhook_url="https://example.com/")
        await store.fail(job.prompt_id, "out_of_memory", "Too large.")
        sql(files.database, "DELETE FROM delivery")
        checked = json.dumps([str(check_url("webhook_url", url)) for url in urls])
        sql(
            files.database,
            "INSERT INTO delivery (id, prompt_id, kind, url, origin, body, created_at, due_at, give_up_at)"
            " SELECT key, ?, 'webhook', value, key, '{\"data\": {\"result\": null}}', 0, 0, 9e15 FROM json_each(?)",
            *(job.prompt_id, checked),
        )
        running = asyncio.create_task(Outbox(Settings(files.root), store, files, scene.guard).run())

        async def all_tried() -> bool:
            return sql(files.database, "SELECT count(*) FROM delivery WHERE last_error IS NULL") == [(0,)]

        await eventually(all_tried)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert sql(files.database, "SELECT count(*) FROM delivery WHERE state = 'delivered'") == [(0,)]
    scene.check_connections()


def is_usable(url: str) -> bool:
    """Return whether the form takes a URL."""
    try:
        check_url("webhook_url", url)
    except BadRequest:
        return False
    return True
