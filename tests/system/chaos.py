"""Many jobs under random faults: `python -m system.chaos --jobs 500 --seed 7`, from the folder `tests`.

The service, two engines, or both are killed and frozen at random moments; proxies between them cut, delay, duplicate
and deafen; outputs vanish; disks are full and freed again; the clock jumps. Jobs come as forms, URLs and over
WebSockets; they are watched, cancelled, retried and erased. At the end every accepted job must have ended rightly.

With `--nodes 3` there are so many nodes, and as many engines, on one PostgreSQL that is restarted and that nodes are
cut off from; nodes are frozen for longer than their leases; files are in a folder that all share or on an S3 server
that answers 503 at times; users talk to any node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from processes import Child, Engine, Service
from system import reckoning
from system.book import Book
from system.cluster import FILES, Cluster
from system.cluster_trouble import ClusterTrouble
from system.cluster_users import ClusterUsers
from system.disks import Disk, FileSizeLimit, Tmpfs, mounted
from system.proxy import Ledger, Proxy
from system.records import SqliteRecords
from system.stored_files import DataFolder
from system.trouble import Trouble
from system.users import Users
from system.world import Node, World, clock_env

ENGINES = 2
SEGMENT_FRAMES = 6
MISCHIEF = 0.08
LONGEST_TROUBLE_S = 1800.0
END_TIMEOUT_S = 240.0
SETTINGS = {"segment_frames": SEGMENT_FRAMES, "queue_limit": 100_000, "url_allow": "127.0.0.0/8"}


class Chaos:
    """One run in a folder of its own. The seed decides what is done; when exactly, the machine."""

    def __init__(
        self,
        folder: Path,
        jobs: int,
        seed: int,
        without: frozenset[str] = frozenset(),
        *,
        long: bool = False,
        engines: int = ENGINES,
    ) -> None:
        self.book = Book()
        self.ledger = Ledger()
        self.mischief: Counter[str] = Counter()
        self.disks = ""
        self._folder = folder
        self._jobs = jobs
        self._without = without
        self._long = long
        seeds = random.Random(seed)
        self._rng: Callable[[], random.Random] = lambda: random.Random(seeds.random())
        self._engines = [Engine(folder / f"engine-{number}", paint=True) for number in range(engines)]
        self._proxies = [
            Proxy(f"http://127.0.0.1:{engine.port}", self.ledger, self._rng(), MISCHIEF) for engine in self._engines
        ]

    async def run(self) -> None:
        """Submit everything while faults happen, then wait, quietly, for every end; the book tells how it went."""
        async with AsyncExitStack() as stack:
            world = await self._start(stack)
            await self._live_through(world)
            await self._reckon(world)

    async def _start(self, stack: AsyncExitStack) -> World:
        """Start everything, to be stopped with `stack`."""
        data_dir, clock = self._folder / "data", self._folder / "clock"
        has_disks = await self._start_engines(stack, data_dir)
        service = Service(self._folder, *self._engine_urls, env=clock_env(clock), **SETTINGS)
        stack.push_async_exit(service)
        node = Node("the service", service, clock)
        await node.start()
        return World(
            nodes=[node],
            engines=self._engines,
            proxies=self._proxies,
            node_disks=[disk_of(service, data_dir, has_disks)],
            engine_disks=[disk_of(engine, engine.data_dir, has_disks) for engine in self._engines],
            records=SqliteRecords(data_dir / "faceswap.db"),
            files=DataFolder(service),
        )

    async def _start_engines(self, stack: AsyncExitStack, *folders: Path) -> bool:
        """Start engines and proxies; tells whether their folders, and these, have disks of their own."""
        has_disks = stack.enter_context(mounted(*folders, *(engine.data_dir for engine in self._engines)))
        self.disks = "tmpfs" if has_disks else "limited file sizes (mounting is not allowed here)"
        for engine in self._engines:
            await stack.enter_async_context(engine)
        for proxy in self._proxies:
            await stack.enter_async_context(proxy.running())
        return has_disks

    @property
    def _engine_urls(self) -> list[str]:
        return [proxy.url for proxy in self._proxies]

    def _users(self, world: World) -> Users:
        rng = self._rng()
        return Users(self._folder, self.book, self.ledger, self._rng(), lambda: world.url(rng))

    def _trouble(self, world: World) -> Trouble:
        return Trouble(world, self.book, self._rng(), self._without, long=self._long)

    async def _live_through(self, world: World) -> None:
        users, trouble = self._users(world), self._trouble(world)
        calm = asyncio.Event()
        async with users.web_server():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(trouble.until(calm))
                await users.submit_all(self._jobs)
                await self._wait_until_open(world, max(2, self._jobs // 50), LONGEST_TROUBLE_S)
                calm.set()
            for proxy in (*self._proxies, *world.s3):
                # A socket that was deafened stays so: it is the listener's to find out.
                proxy.mischief = 0.0
            if await self._wait_until_open(world, 0, END_TIMEOUT_S):
                await users.heard_all()
        self.mischief = sum((proxy.counts for proxy in (*self._proxies, *world.s3)), Counter())

    async def _wait_until_open(self, world: World, most: int, bound_s: float) -> bool:
        """Wait until at most so many jobs have not ended; False when that takes too long."""
        deadline = time.monotonic() + bound_s
        while len(await reckoning.still_open(world)) > most:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.5)
        return True

    async def _reckon(self, world: World) -> None:
        book = self.book
        book.violations += [f"run twice: {what}" for what in self.ledger.run_twice]
        await reckoning.check_jobs(book, world, self._folder)
        for node in world.nodes:
            if status := await node.stop():
                book.violated(f"{node.name} stopped with {status}")
        book.violations += await world.records.integrity_faults()
        # What an upload left that was cut off with the process goes at the next start.
        await asyncio.gather(*(node.start() for node in world.nodes))
        await reckoning.check_files(book, world)
        await reckoning.check_erasure(book, world)
        for engine in self._engines:
            reckoning.check_engine_files(book, engine)


class ClusterChaos(Chaos):
    """One run of several nodes, with as many engines."""

    def __init__(
        self,
        folder: Path,
        jobs: int,
        seed: int,
        without: frozenset[str] = frozenset(),
        *,
        nodes: int,
        files: str = "folder",
        long: bool = False,
    ) -> None:
        super().__init__(folder, jobs, seed, without, long=long, engines=nodes)
        self._cluster = Cluster(folder, nodes, files=files, rng=self._rng(), mischief=MISCHIEF, **SETTINGS)

    async def _start(self, stack: AsyncExitStack) -> World:
        cluster = self._cluster
        has_disks = await self._start_engines(stack, *cluster.data_dirs, *cluster.shared_dirs)
        await stack.enter_async_context(cluster.running(self._engine_urls))
        return World(
            nodes=cluster.nodes,
            engines=self._engines,
            proxies=self._proxies,
            node_disks=[disk_of(node.service, node.service.data_dir, has_disks) for node in cluster.nodes],
            engine_disks=[disk_of(engine, engine.data_dir, has_disks) for engine in self._engines],
            shared_disks=[Tmpfs(folder) for folder in cluster.shared_dirs if has_disks],
            records=cluster.records,
            files=cluster.files,
            s3=[cluster.s3] if cluster.s3 else [],
        )

    def _users(self, world: World) -> Users:
        rng = self._rng()
        return ClusterUsers(self._folder, self.book, self.ledger, self._rng(), lambda: world.url(rng))

    def _trouble(self, world: World) -> Trouble:
        return ClusterTrouble(world, self._cluster, self.book, self._rng(), self._without, long=self._long)


def disk_of(process: Child, folder: Path, is_mounted: bool) -> Disk:
    """Return the disk that a process writes its folder to."""
    return Tmpfs(folder) if is_mounted else FileSizeLimit(lambda: process.pid)


def main() -> int:
    """Run, print the figures, keep the logs when something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=0, help="so many nodes on one PostgreSQL; 0: SQLite, one service")
    parser.add_argument("--files", choices=FILES, default="moto", help="where the files of several nodes are")
    parser.add_argument("--jobs", type=int, help="500; of several nodes 300")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--without", default="", help="kinds of faults to leave out, separated by commas")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faceswap-chaos-"))
    sys.stdout.write(f"seed {arguments.seed}; logs in {folder}\n")
    sys.stdout.flush()
    started = time.monotonic()
    without = frozenset(filter(None, arguments.without.split(",")))
    chaos: Chaos
    if arguments.nodes:
        chaos = ClusterChaos(
            folder,
            arguments.jobs or 300,
            arguments.seed,
            without,
            nodes=arguments.nodes,
            files=arguments.files,
            long=True,
        )
    else:
        chaos = Chaos(folder, arguments.jobs or 500, arguments.seed, without, long=True)
    asyncio.run(chaos.run())
    book = chaos.book
    figures = {
        "seconds": round(time.monotonic() - started),
        "disks": chaos.disks,
        "faults": dict(book.faults),
        "mischief": dict(chaos.mischief),
        "done by users": dict(book.done),
        "promised": len(book.promised),
        "ended": dict(book.ended),
        "watched live": sum(map(len, book.heard.values())),
        "taken over after s": book.take_overs_s,
        "violations": book.violations,
    }
    sys.stdout.write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    return 1 if book.violations else 0


if __name__ == "__main__":
    sys.exit(main())
