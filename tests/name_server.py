"""A name server of the tests' own, and a resolver that asks it: names lead where a test wants, and elsewhere later."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from waiting import WAIT_S

A, CNAME, AAAA = 1, 5, 28
FAMILIES = {A: socket.AF_INET, AAAA: socket.AF_INET6}
NO_SUCH_NAME = 3

Zone = Mapping[str, Sequence[Sequence[str]]]
"""The answers to each name, one after the other, the last one from then on: addresses, or one name it stands for."""


def encoded(name: str) -> bytes:
    """Encode a name as it goes over the wire (RFC 1035, 3.1)."""
    labels = [label.encode() for label in name.rstrip(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def decoded(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at a place of a message, and the place after it."""
    labels = []
    while length := message[at]:
        if length >= 0xC0:
            return ".".join([*labels, decoded(message, (length & 0x3F) << 8 | message[at + 1])[0]]), at + 2
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1


class NameServer(asyncio.DatagramProtocol):
    """A server of one zone, over UDP."""

    def __init__(self, zone: Zone) -> None:
        self.asked: list[str] = []
        self._zone = zone
        self._turns: dict[tuple[str, int], int] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        name, at = decoded(data, 12)
        [kind] = struct.unpack_from("!H", data, at)
        self.asked.append(name)
        records = list(self._records(name.lower(), kind))
        known = name.lower() in self._zone
        flags = 0x8580 | (0 if known else NO_SUCH_NAME)
        header = data[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        assert self._transport is not None
        self._transport.sendto(header + data[12 : at + 4] + b"".join(records), addr)

    def _records(self, name: str, kind: int) -> AsyncIterator[bytes] | Any:
        turns = self._zone.get(name, ())
        if not turns:
            return
        turn = self._turns[name, kind] = self._turns.get((name, kind), -1) + 1
        for value in turns[min(turn, len(turns) - 1)]:
            try:
                address = ipaddress.ip_address(value)
            except ValueError:
                yield record(name, CNAME, encoded(value))
                yield from self._records(value, kind)
                continue
            if kind == (A if address.version == 4 else AAAA):
                yield record(name, kind, address.packed)


def record(name: str, kind: int, data: bytes) -> bytes:
    """Encode a resource record that nobody may keep (RFC 1035, 3.2.1)."""
    return encoded(name) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


class Resolver(AbstractResolver):
    """A resolver that asks a name server for both families, as a system's own would."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ids = itertools.count(1)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = [address for kind in FAMILIES for address in await self._ask(host, kind)]
        if not found:
            raise OSError(f"there is no host {host}")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Close nothing: each question has a socket of its own."""

    async def _ask(self, host: str, kind: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        class Question(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                answer.set_result(data)

        transport, _ = await loop.create_datagram_endpoint(Question, remote_addr=("127.0.0.1", self._port))
        try:
            number = next(self._ids) & 0xFFFF
            question = encoded(host.encode("idna").decode()) + struct.pack("!HH", kind, 1)
            transport.sendto(struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + question)
            message = await asyncio.wait_for(answer, WAIT_S)
        finally:
            transport.close()
        return list(addresses(message, kind))


def addresses(message: bytes, kind: int) -> Any:
    """Yield the addresses of one kind in an answer."""
    count = struct.unpack_from("!H", message, 6)[0]
    at = decoded(message, 12)[1] + 4
    for _ in range(count):
        at = decoded(message, at)[1]
        found, _, _, length = struct.unpack_from("!HHIH", message, at)
        at += 10 + length
        if found == kind:
            yield ipaddress.ip_address(message[at - length : at])


@asynccontextmanager
async def serving(zone: Zone) -> AsyncIterator[tuple[NameServer, Resolver]]:
    """Yield a name server that runs, and a resolver that asks it."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(zone), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server, Resolver(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
