"""Several nodes on one PostgreSQL: each with its own way to it, files on S3 or in a folder that all share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from postgres import Server, start_server, through
from processes import Service
from s3_servers import S3Server
from system.records import PostgresRecords, Row
from system.s3_proxy import S3Proxy
from system.stored_files import Bucket, FilesOfNodes
from system.tcp_proxy import TcpProxy
from system.world import Node, clock_env

FILES = ("folder", "moto", "nanio")
"""Places for the files of jobs: a folder that all nodes share, or an S3 server."""
PREFIX = "faceswap"


class Cluster:
    """Nodes, and what they share; `async with cluster.running(engine_urls)` runs it."""

    records: PostgresRecords
    files: FilesOfNodes
    postgres: Server
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
        self._services: list[Service] = []
        self._folder = folder
        self._names = [f"node-{number}" for number in range(nodes)]
        self._shared = folder / "shared"
        self._files_kind = files
        self._rng = rng or random.Random()
        self._mischief = mischief
        self._settings = settings

    @property
    def data_dirs(self) -> list[Path]:
        """The folders that are the nodes' own."""
        return [self._folder / name / "data" for name in self._names]

    @property
    def shared_dirs(self) -> list[Path]:
        """The folder that all nodes share, if they do."""
        return [self._shared] if self._files_kind == "folder" else []

    @asynccontextmanager
    async def running(self, engine_urls: list[str]) -> AsyncIterator[Self]:
        """Run the nodes in front of these engines."""
        async with AsyncExitStack() as stack:
            self.postgres = start_server()
            stack.callback(self.postgres.remove)
            self.records = PostgresRecords(self.postgres.url)
            files_url, environment = await self._start_files(stack)
            for name in self._names:
                way = await stack.enter_async_context(TcpProxy(self.postgres.port).running())
                self.database_ways.append(way)
                url = through(self.postgres.url, way.port)
                node = self._node(name, engine_urls, environment, database_url=url, files_url=files_url)
                self.nodes.append(node)
                stack.push_async_exit(node.service)
            # All at once: each wants to bring the new database up to date.
            await asyncio.gather(*(node.start() for node in self.nodes))
            yield self

    async def _start_files(self, stack: AsyncExitStack) -> tuple[str, Mapping[str, str]]:
        """Make a place for files; returns its address, and the environment in which it is one."""
        if self._files_kind == "folder":
            self._shared.mkdir(exist_ok=True)
            self.files = FilesOfNodes(self._shared, self._services)
            return str(self._shared), {}
        server = stack.enter_context(S3Server(self._files_kind))
        bucket = server.new_bucket()
        self.s3 = await stack.enter_async_context(S3Proxy(server.url, self._rng, self._mischief).running())
        self.files = Bucket(server, bucket, PREFIX, self._services)
        return f"s3://{bucket}/{PREFIX}", server.environment(self.s3.url)

    def restart_database(self) -> None:
        """Stop the database at once, as a crash would, and start it again."""
        self.postgres.stop()
        self.postgres.start()

    async def leases(self) -> list[Row]:
        """Return the leases on engines that a node holds now, by the clock of the database."""
        now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
        return await self.records.rows(f"SELECT * FROM lease WHERE name LIKE 'backend:%' AND expires_at > {now}")

    def _node(self, name: str, engine_urls: list[str], environment: Mapping[str, str], **settings: object) -> Node:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        clock = folder / "clock"
        environment = {**environment, **clock_env(clock)}
        service = Service(folder, *engine_urls, env=environment, node=name, **self._settings, **settings)
        self._services.append(service)
        return Node(name, service, clock)
