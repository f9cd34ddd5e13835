"""The guard of URLs: which are usable, and which addresses are public; `ssrfguard` is asked about the same ones."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import threading
from collections.abc import Iterator

import aiohttp
import pytest
from ssrfguard import DEFAULT_DENIED
from ssrfguard._registry import TABLE
from waiting import WAIT_S, until
from yarl import URL

from faceswap.errors import BadRequest, Unprocessable
from faceswap.url_guard import UrlGuard, check_url, effective_address, is_public


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.2.1",
        "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1",
        "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:a00:1::", "2001::1",
        "2001:db8::1", "fc00::1", "fe80::1", "fec0::1", "ff02::1", "100::1", "192.88.99.1", "192.0.0.192",
        "::ffff:192.88.99.1", "3fff::1", "3fff:fff:ffff::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_the_internets_is_not_public(text: str) -> None:
    assert not is_public(effective_address(ipaddress.ip_address(text)))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"])
def test_an_address_of_the_internet_is_public(text: str) -> None:
    assert is_public(effective_address(ipaddress.ip_address(text)))


@pytest.mark.parametrize(
    "text",
    [
        "", "clip.mp4", "/clip.mp4", "//example.com/x", "ftp://example.com/x", "file:///etc/passwd", "data:,x", "http://",
        "http:///x", "http://user@example.com/", "http://user:pass@example.com/", "http://:pass@example.com/",
        "http://example.com:0/", "http://example.com:22/", "http://example.com:99999/", "http://example.com:x/",
        "http://[::1/", "http://\ud800/", "http://a..b/", "http://" + "x" * 70 + ".com/",
        "http://xn--/", "http://xn--a.xn--/",
        "http://example.com/" + "x" * 5000, None, 7,
    ],
)  # fmt: skip
def test_what_is_no_usable_url_is_refused(text: object) -> None:
    with pytest.raises(BadRequest) as caught:
        check_url("video_url", text)
    assert caught.value.code == "invalid_url"


@pytest.mark.parametrize(
    "text",
    ["http://example.com", "https://example.com:8443/a%2Fb?x=%2B#part", "HTTP://Example.com/ü", "http://[2606::1]/"],
)
def test_a_usable_url_is_taken(text: str) -> None:
    assert check_url("video_url", text).host


def test_a_signed_url_is_left_as_it_is() -> None:
    signed = "https://bucket.example.com/a%2Fb.mp4?X-Sig=ab%2Bcd%3D&e=1"
    assert str(check_url("video_url", signed)) == signed


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://a.example/%7Eme/%41?sig=a%2Fb&X=%7E+%20a", "https://a.example/%7Eme/%41?sig=a%2Fb&X=%7E+%20a"),
        ("https://a.example/a%2fb;x=1?y='(z)'#part", "https://a.example/a%2fb;x=1?y='(z)'"),
        ("https://a.example/ü b?x={1}", "https://a.example/%C3%BC%20b?x=%7B1%7D"),
        ("HTTPS://A.Example:443/%7E", "https://a.example/~"),
    ],
)
def test_a_url_is_kept_letter_by_letter_where_it_can_be(text: str, kept: str) -> None:
    assert str(check_url("result_put_url", text)) == kept


async def test_a_name_server_that_never_answers_keeps_no_file_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, asked = threading.Event(), list[str]()

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        answered.wait(WAIT_S)
        raise socket.gaierror("there is no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with UrlGuard().session(WAIT_S) as session:
        calls = [asyncio.create_task(session.get(f"http://h{number}.slow.test/")) for number in range(40)]
        await until(lambda: len(asked) == len(calls))
        assert await asyncio.to_thread(int, "7") == 7
        calls[0].cancel()
        answered.set()
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in ended} == {asyncio.CancelledError, aiohttp.ClientConnectorDNSError}


# Held against ssrfguard

STRICTER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments, the anycast services among them included
        "2001::/23",
        "2002::/16",  # 6to4, whatever it carries
        "::/3",  # no global unicast: 2000::/3 is all of that
        "4000::/2",
        "8000::/1",
    )
)
"""Networks of which ours refuses addresses that ssrfguard permits."""


def judged_addresses() -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Yield addresses at and around every border that ssrfguard knows, each IPv4 one in all its wrappings, and others.

    The same ones in every run.
    """
    chance = random.Random(9)
    for network in [block.network for block in TABLE]:
        first, last = int(network.network_address), int(network.broadcast_address)
        make = type(network.network_address)
        inside = [chance.randint(first, last) for _ in range(8)]
        for number in (first, last, first - 1, last + 1, *inside):
            if 0 <= number < 1 << network.max_prefixlen:
                yield make(number)
    yield from (ipaddress.IPv4Address(chance.getrandbits(32)) for _ in range(4000))
    yield from (ipaddress.IPv6Address((0b001 << 125) | chance.getrandbits(125)) for _ in range(4000))
    yield from (ipaddress.IPv6Address(chance.getrandbits(128)) for _ in range(1000))


def wrapped(address: ipaddress.IPv4Address) -> Iterator[ipaddress.IPv6Address]:
    """Yield the IPv6 addresses that carry an IPv4 one: mapped, compatible, NAT64, 6to4, Teredo."""
    number = int(address)
    yield ipaddress.IPv6Address(0xFFFF << 32 | number)
    yield ipaddress.IPv6Address(number)
    yield ipaddress.IPv6Address(0x64_FF9B << 96 | number)
    yield ipaddress.IPv6Address(0x2002 << 112 | number << 80)
    yield ipaddress.IPv6Address(0x2001_0000 << 96 | 0x0808_0808 << 64 | (number ^ 0xFFFF_FFFF))


def test_what_ssrfguard_refuses_is_refused_and_little_else() -> None:
    judged = list(judged_addresses())
    judged += [outer for inner in judged if isinstance(inner, ipaddress.IPv4Address) for outer in wrapped(inner)]
    theirs = {address: not DEFAULT_DENIED.classify(address).blocked for address in judged}
    ours = {address: is_public(effective_address(address)) for address in judged}
    assert len(ours) > 20_000 and any(ours.values())
    assert not [str(address) for address in judged if ours[address] and not theirs[address]]
    stricter = {effective_address(address) for address in judged if theirs[address] and not ours[address]}
    assert not [str(address) for address in stricter if not any(address in network for network in STRICTER)]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "https://[::ffff:10.0.0.1]:8443/x", "http://[fe80::1%25lo]/", "http://192.88.99.1/"]
)
def test_an_address_in_the_url_itself_is_refused_before_any_connection(url: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        UrlGuard().check_literal("webhook_url", check_url("webhook_url", url))
    assert caught.value.code == "url_not_allowed" and "webhook_url" in caught.value.detail


@pytest.mark.parametrize("url", ["http://1.1.1.1/", "http://example.com/", "http://127.0.0.2/"])
def test_a_name_or_an_allowed_address_in_the_url_is_left_to_the_connection(url: str) -> None:
    UrlGuard((ipaddress.ip_network("127.0.0.2/32"),)).check_literal("webhook_url", URL(url))
