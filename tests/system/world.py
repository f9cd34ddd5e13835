"""The parts of a chaos run that can be broken, and the questions it asks beside the service."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from postgres import Postgres
from processes import Engine, Service
from system.disks import Disk
from system.proxy import Proxy
from system.records import Records, Row
from system.s3_proxy import S3Proxy
from system.tcp_proxy import TcpProxy

SHIFTED_CLOCK = Path(__file__).parent / "shifted_clock"


class Node:
    """A service that runs most of the time."""

    def __init__(self, name: str, service: Service, clock: Path) -> None:
        self.name = name
        self.service = service
        self.clock = clock
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def is_up(self) -> bool:
        """True while it runs and its address is known."""
        return self._url.done()

    async def url(self) -> str:
        """Return its address, once it runs."""
        return await asyncio.shield(self._url)

    async def start(self) -> None:
        """Start it, on a port of its own choice."""
        await self.service.start()
        self._url.set_result(self.service.url)

    async def kill(self) -> None:
        """Kill it; who asks for its address waits from now on."""
        if self.is_up:
            self._url = asyncio.get_running_loop().create_future()
        await self.service.kill()


def clock_env(clock: Path) -> dict[str, str]:
    """Return the environment of a process whose clock can jump."""
    clock.write_text("0")
    path = os.pathsep.join([str(SHIFTED_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "CHAOS_CLOCK": str(clock)}


class StoredFiles(Protocol):
    """The files of jobs, wherever they are."""

    async def names(self) -> set[str]:
        """Return all files, as `inputs/JOB/FILE`, `outputs/FILE`, `work/JOB/FILE`; what is of no job by its path."""


class LocalFiles:
    """The files in the data folder of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def names(self) -> set[str]:
        return set(self._service.files())


@dataclass
class World:
    """The parts that can be broken. A run on one machine has one node, and neither `postgres` nor `s3`."""

    nodes: list[Node]
    engines: list[Engine]
    proxies: list[Proxy]
    node_disks: list[Disk]
    engine_disks: list[Disk]
    records: Records
    files: StoredFiles
    shared_disks: list[Disk] = field(default_factory=list)
    """One for the folder that all nodes share, if they do."""
    database_ways: list[TcpProxy] = field(default_factory=list)
    """One for each node of a cluster."""
    postgres: Postgres | None = None
    s3: S3Proxy | None = None

    async def leases(self) -> list[Row]:
        """Return the leases on engines that somebody holds now, by the clock of PostgreSQL."""
        now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
        return await self.records.rows(f"SELECT * FROM lease WHERE name LIKE 'backend:%' AND expires_at > {now}")

    async def url(self, rng: random.Random) -> str:
        """Return the address of some node that runs, as a load balancer would choose; waits until there is one."""
        up = [node for node in self.nodes if node.is_up]
        return await rng.choice(up or self.nodes).url()
