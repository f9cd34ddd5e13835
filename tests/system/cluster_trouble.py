"""Faults of several nodes on one database: of the nodes, of the database, of the ways to it, and of the files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time

import asyncpg
from system.book import Book
from system.cluster import Cluster
from system.tcp_proxy import TcpProxy
from system.trouble import Cause, Trouble
from system.world import Node, World

PAST_LEASE_S = (12.0, 18.0)
"""Longer than a node's lease lasts without a renewal."""
SHORT_S = (0.3, 4.0)
LONG_LOCK_S = (5.0, 8.0)
"""Longer than a statement may take."""
TAKE_OVER_S = 15.0
"""Promised: within this time another node has what a dead one held."""
BUSY_S = 15.0
"""Allowed beyond that, because the machine does much else."""


class ClusterTrouble(Trouble):
    """Causes faults of a cluster too. With `long` some outlast the leases."""

    def __init__(
        self, world: World, cluster: Cluster, book: Book, rng: random.Random, without: frozenset[str], *, long: bool
    ) -> None:
        self._cluster = cluster
        super().__init__(world, book, rng, without, long=long)

    def _kinds(self) -> dict[str, list[tuple[Cause, int]]]:
        kinds = super()._kinds()
        kinds["kill"] += [(self._kill_all_nodes, 1), (self._stop_a_node, 2)]
        kinds["freeze"] += [(self._freeze_a_node, 2)]
        kinds["database"] = [
            (self._restart_the_database, 3),
            (self._cut_a_node_off, 2),
            (self._silence_a_nodes_database, 2),
            (self._lose_the_databases_answers, 2),
            (self._drop_a_nodes_connections, 2),
            (self._use_up_the_databases_connections, 1),
            (self._lock_a_table, 1),
        ]
        kinds["files"] = [(self._fill_a_shared_disk, 2)] if self._world.shared_disks else []
        if self._cluster.s3 is not None:
            kinds["files"] += [(self._make_s3_unavailable, 3), (self._silence_s3, 1)]
        if self._long:
            kinds["kill"] += [(self._kill_a_holder_until_it_is_replaced, 2)]
            kinds["freeze"] += [(self._freeze_a_holder_past_its_lease, 2)]
            kinds["database"] += [
                (self._cut_a_holder_off_past_its_lease, 1),
                (self._silence_a_holders_database_past_its_lease, 1),
            ]
        return kinds

    async def until(self, calm: asyncio.Event) -> None:
        """Cause faults of the processes, and at the same time of what they use."""
        kinds = self._kinds()
        used = {kind: kinds.pop(kind) for kind in ("database", "files")}
        rng = random.Random(self._rng.random())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cause_faults_of_processes(calm, kinds))
            async for _ in self._cause_faults(calm, used, rng):
                pass

    async def _cause_faults_of_processes(self, calm: asyncio.Event, kinds: dict[str, list[tuple[Cause, int]]]) -> None:
        async for _ in self._cause_faults(calm, kinds, self._rng):
            await self._revive()

    async def _holder(self) -> Node:
        """Return a node that holds an engine, or any when none does."""
        holders = {row["holder"] for row in await self._cluster.leases()}
        return self._rng.choice([node for node in self._world.nodes if node.name in holders] or self._world.nodes)

    def _way(self, node: Node) -> TcpProxy:
        """Return a node's way to the database."""
        return self._cluster.database_ways[self._world.nodes.index(node)]

    async def _short(self) -> None:
        await asyncio.sleep(self._rng.uniform(*SHORT_S))

    async def _past_lease(self) -> None:
        await asyncio.sleep(self._rng.uniform(*PAST_LEASE_S))

    # Nodes

    async def _kill_all_nodes(self) -> None:
        for node in self._world.nodes:
            await node.kill()
        await asyncio.gather(*(node.start() for node in self._world.nodes))

    async def _stop_a_node(self) -> None:
        """Stop a node as an upgrade would, and start it again."""
        node = self._node()
        if status := await node.stop():
            self._book.violated(f"{node.name} stopped with {status}")
        await node.start()

    async def _kill_a_holder_until_it_is_replaced(self) -> None:
        """Kill a node, and start it again only when others hold each of the engines."""
        node = await self._holder()
        await node.kill()
        killed_at = time.monotonic()
        while len(others := await self._held_by_others(node)) < len(self._world.engines):
            if time.monotonic() - killed_at > TAKE_OVER_S + BUSY_S:
                self._book.violated(f"{node.name} was killed, and others hold only {others}")
                break
            await asyncio.sleep(0.2)
        self._book.take_overs_s.append(round(time.monotonic() - killed_at, 1))
        await node.start()

    async def _held_by_others(self, node: Node) -> list[str]:
        return [row["name"] for row in await self._cluster.leases() if row["holder"] != node.name]

    async def _freeze_a_node(self) -> None:
        await self._freeze_node(self._node(), self._short)

    async def _freeze_a_holder_past_its_lease(self) -> None:
        await self._freeze_node(await self._holder(), self._past_lease)

    async def _freeze_node(self, node: Node, lasting: Cause) -> None:
        os.kill(node.service.pid, signal.SIGSTOP)
        await lasting()
        os.kill(node.service.pid, signal.SIGCONT)

    # The database, and the ways to it

    async def _restart_the_database(self) -> None:
        self._cluster.restart_database()

    async def _cut_a_node_off(self) -> None:
        way = self._way(self._node())
        way.cut()
        await self._short()
        way.heal()

    async def _cut_a_holder_off_past_its_lease(self) -> None:
        way = self._way(await self._holder())
        way.cut()
        await self._past_lease()
        way.heal()

    async def _silence_a_nodes_database(self) -> None:
        way = self._way(self._node())
        way.hold()
        await self._short()
        way.heal()

    async def _silence_a_holders_database_past_its_lease(self) -> None:
        way = self._way(await self._holder())
        way.hold()
        await self._past_lease()
        way.heal()

    async def _lose_the_databases_answers(self) -> None:
        """Let a node not know which of its last transactions were committed."""
        way = self._way(self._node())
        way.lose_answers()
        await asyncio.sleep(self._rng.uniform(0.05, 0.5))
        way.heal()

    async def _use_up_the_databases_connections(self) -> None:
        """Take every connection that the database still has."""
        taken = []
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            while True:
                taken.append(await asyncpg.connect(self._cluster.postgres.url))
        await self._short()
        for connection in taken:
            connection.terminate()

    async def _lock_a_table(self) -> None:
        """Let nobody use a table, as a migration would."""
        table = self._rng.choice(("job", "segment", "lease", "event"))
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await asyncpg.connect(self._cluster.postgres.url)
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {table}")
                await self._last(SHORT_S, LONG_LOCK_S)
            await connection.close()

    async def _drop_a_nodes_connections(self) -> None:
        self._way(self._node()).drop_connections()

    # Files

    async def _fill_a_shared_disk(self) -> None:
        await self._fill(self._rng.choice(self._world.shared_disks))

    async def _make_s3_unavailable(self) -> None:
        s3 = self._cluster.s3
        assert s3 is not None
        s3.available = False
        await self._last(SHORT_S, PAST_LEASE_S)
        s3.available = True

    async def _silence_s3(self) -> None:
        s3 = self._cluster.s3
        assert s3 is not None
        s3.answers.clear()
        await self._last(SHORT_S, PAST_LEASE_S)
        s3.answers.set()
