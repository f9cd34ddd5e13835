"""The parts of a chaos run that can be broken, and the questions it asks beside the service."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from processes import Engine, Service
from system.disks import Disk
from system.proxy import Proxy
from system.records import Records
from system.s3_proxy import S3Proxy
from system.stored_files import DataFolder

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
        self._go_down()
        await self.service.kill()

    async def stop(self) -> int:
        """Stop it as systemd would; returns the exit status."""
        self._go_down()
        return await self.service.stop()

    def _go_down(self) -> None:
        if self.is_up:
            self._url = asyncio.get_running_loop().create_future()


def clock_env(clock: Path) -> dict[str, str]:
    """Return the environment of a process whose clock can jump."""
    clock.write_text("0")
    path = os.pathsep.join([str(SHIFTED_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "CHAOS_CLOCK": str(clock)}


@dataclass
class World:
    """The parts that can be broken. A run on one machine has one node."""

    nodes: list[Node]
    engines: list[Engine]
    proxies: list[Proxy]
    node_disks: list[Disk]
    engine_disks: list[Disk]
    records: Records
    files: DataFolder
    shared_disks: list[Disk] = field(default_factory=list)
    """One for the folder that all nodes share, if they do."""
    s3: list[S3Proxy] = field(default_factory=list)
    """The one to the S3 server, if there is one."""

    async def url(self, rng: random.Random) -> str:
        """Return the address of some node that runs, as a load balancer would choose; waits until there is one."""
        up = [node for node in self.nodes if node.is_up]
        return await rng.choice(up or self.nodes).url()
