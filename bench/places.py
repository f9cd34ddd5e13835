"""The places in which a row runs: SQLite, or PostgreSQL with one node or with two, which share a folder.

Of two nodes one has the engines, and the other, which was started after it, is asked and watched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path

import aiohttp
import postgres
from filled import fill, fill_postgres
from processes import Service, eventually
from rows import Place

UNSAFE = ("fsync", "full_page_writes", "synchronous_commit", "autovacuum")
"""Settings of the tests' server that a figure must not rest on."""


class Nodes:
    """The nodes of a place, over folders that stay the same over restarts."""

    def __init__(self, nodes: Sequence[Service], engines: int, database_url: str | None, inputs: Path) -> None:
        self.nodes = nodes
        self._engines = engines
        self._database_url = database_url
        self._inputs = inputs

    @property
    def asked(self) -> Service:
        """The node that is asked and watched."""
        return self.nodes[-1]

    @property
    def others(self) -> Sequence[Service]:
        """The nodes before it, of which the first has the engines."""
        return self.nodes[:-1]

    async def start(self) -> None:
        """Start all nodes, the one that is asked when another has the engines."""
        for node in self.others:
            await node.start()
            await all_connected(node, self._engines)
        await self.asked.start()

    async def stop(self) -> None:
        """Stop all nodes that run."""
        for node in self.nodes:
            if node.running:
                await node.stop()

    def fill(self, prompt_id: str, *, ended: int = 0, waiting: int = 0) -> tuple[list[str], list[str]]:
        """Copy a job while no node runs; returns the ids of ended and of waiting copies."""
        if self._database_url is None:
            return fill(self.asked.data_dir, prompt_id, ended=ended, waiting=waiting)
        return fill_postgres(self._database_url, self._inputs, prompt_id, ended=ended, waiting=waiting)


@asynccontextmanager
async def deployed(place: Place, folder: Path, *engine_urls: str, **settings: object) -> AsyncIterator[Nodes]:
    """Run the nodes of a place in a folder."""
    folder.mkdir(exist_ok=True)
    folders, database_url, inputs = [folder], None, folder / "data" / "inputs"
    with ExitStack() as stack:
        if place.nodes:
            make_safe()
            database_url, shared = stack.enter_context(postgres.database()), folder / "shared"
            shared.mkdir()
            folders, inputs = [folder / f"node{number}" for number in range(place.nodes)], shared / "inputs"
            settings = {**settings, "database_url": database_url, "files_url": shared}
        nodes = [Service(home, *engine_urls, **settings) for home in folders]
        made = Nodes(nodes, len(engine_urls), database_url, inputs)
        try:
            await made.start()
            yield made
        finally:
            for node in nodes:
                await node.__aexit__()


async def all_connected(service: Service, count: int) -> None:
    """Wait until so many engines are connected."""
    async with aiohttp.ClientSession() as session:

        async def connected() -> bool:
            async with session.get(f"{service.url}/health") as answer:
                backends = (await answer.json())["backends"]
            return sum(backend["listener"] == "connected" for backend in backends) == count

        await eventually(connected)


@cache
def make_safe() -> None:
    """Have the server, which is not started yet, sync as a real one does."""
    for setting in UNSAFE:
        postgres.SETTINGS.pop(setting, None)
