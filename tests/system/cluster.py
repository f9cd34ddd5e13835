"""Several nodes on one PostgreSQL: each with its own way to it, files on S3 or in a folder that all share."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from postgres import Postgres
from processes import Service, files_in
from system.records import PostgresRecords
from system.s3_proxy import S3Proxy
from system.tcp_proxy import TcpProxy
from system.world import Node, StoredFiles, clock_env

FILES = ("folder",)
"""Places for the files of jobs."""
OF_THE_NODE = ("lock", "node", "engine/")
"""Names in a node's data folder that are no files of jobs."""


class Cluster:
    """Nodes, and what they share; `async with cluster.running(engine_urls)` runs it."""

    records: PostgresRecords
    files: StoredFiles
    postgres: Postgres
    s3: S3Proxy | None = None

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        files: str = "folder",
        rng: random.Random | None = None,
        mischief: float = 0.0,
        **settings: object,
    ) -> None:
        """`files` is one of `FILES`; `mischief` is the chance that S3 answers a call with 503."""
        self.nodes: list[Node] = []
        self.database_ways: list[TcpProxy] = []
        self._folder = folder
        self._names = [f"node-{number}" for number in range(nodes)]
        self._shared = folder / "shared"
        self._settings = settings

    @property
    def data_dirs(self) -> list[Path]:
        """The folders that are the nodes' own."""
        return [self._folder / name / "data" for name in self._names]

    @property
    def shared_dirs(self) -> list[Path]:
        """The folder that all nodes share, if they do."""
        return [self._shared]

    @asynccontextmanager
    async def running(self, engine_urls: Iterable[str]) -> AsyncIterator[Self]:
        """Run the nodes in front of these engines."""
        async with AsyncExitStack() as stack:
            self.postgres = stack.enter_context(Postgres())
            database = self.postgres.create_database()
            self.records = PostgresRecords(self.postgres.url(database))
            self._shared.mkdir(exist_ok=True)
            for name in self._names:
                way = await stack.enter_async_context(TcpProxy(self.postgres.port).running())
                self.database_ways.append(way)
                node = self._node(name, list(engine_urls), self.postgres.url(database, way.port))
                self.nodes.append(node)
                stack.push_async_exit(node.service)
                await node.start()
            self.files = SharedFolder(self._shared, self.nodes)
            yield self

    def _node(self, name: str, engine_urls: list[str], database_url: str) -> Node:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        settings = {
            "node": name,
            "database_url": database_url,
            "files_url": str(self._shared),
            **self._settings,
        }
        clock = folder / "clock"
        return Node(name, Service(folder, *engine_urls, env=clock_env(clock), **settings), clock)


class SharedFolder:
    """The files in a folder that nodes share, and what they have in folders of their own."""

    def __init__(self, folder: Path, nodes: list[Node]) -> None:
        self._folder = folder
        self._nodes = nodes

    async def names(self) -> set[str]:
        return {*files_in(self._folder), *files_of_nodes(self._nodes)}


def files_of_nodes(nodes: list[Node]) -> set[str]:
    """Return the files of jobs in the nodes' own folders."""
    return {
        f"{node.name}/{name}"
        for node in nodes
        for name in files_in(node.service.data_dir)
        if not name.startswith(OF_THE_NODE)
    }
