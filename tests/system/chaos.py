"""Many jobs under random faults: `python -m system.chaos --jobs 500 --seed 7`, from the folder `tests`.

The service, two engines, or both are killed and frozen at random moments; proxies between them cut, delay, duplicate
and deafen; outputs vanish; disks are full and freed again; the clock jumps. Jobs come as forms, URLs and over
WebSockets; they are watched, cancelled, retried and erased. At the end every accepted job must have ended rightly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from processes import Engine, Service
from system import reckoning
from system.book import Book
from system.disks import Disk, FileSizeLimit, Tmpfs, mounted
from system.proxy import Ledger, Proxy
from system.trouble import Trouble, World
from system.users import Users

ENGINES = 2
SEGMENT_FRAMES = 6
MISCHIEF = 0.08
LONGEST_TROUBLE_S = 1800.0
END_TIMEOUT_S = 240.0
SHIFTED_CLOCK = Path(__file__).parent / "shifted_clock"


class Chaos:
    """One run in a folder of its own. The seed decides what is done; when exactly, the machine."""

    def __init__(
        self, folder: Path, jobs: int, seed: int, without: frozenset[str] = frozenset(), *, long: bool = False
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
        self._engines = [Engine(folder / f"engine-{number}", paint=True) for number in range(ENGINES)]
        self._proxies = [
            Proxy(f"http://127.0.0.1:{engine.port}", self.ledger, self._rng(), MISCHIEF) for engine in self._engines
        ]

    async def run(self) -> None:
        """Submit everything while faults happen, then wait, quietly, for every end; the book tells how it went."""
        clock = self._folder / "clock"
        clock.write_text("0")
        path = os.pathsep.join([str(SHIFTED_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
        async with AsyncExitStack() as stack:
            files = [self._folder / "data", *(engine.data_dir for engine in self._engines)]
            has_disks = stack.enter_context(mounted(*files))
            for process in (*self._engines, *self._proxies):
                await stack.enter_async_context(process if isinstance(process, Engine) else process.running())
            service = Service(
                self._folder,
                *(proxy.url for proxy in self._proxies),
                env={"PYTHONPATH": path, "CHAOS_CLOCK": str(clock)},
                segment_frames=SEGMENT_FRAMES,
                queue_limit=100_000,
                url_allow="127.0.0.0/8",
            )
            await stack.enter_async_context(service)
            disks: list[Disk] = (
                [Tmpfs(folder) for folder in files]
                if has_disks
                else [FileSizeLimit(lambda child=child: child.pid) for child in (service, *self._engines)]  # type: ignore[misc]
            )
            self.disks = "tmpfs" if has_disks else "limited file sizes (mounting is not allowed here)"
            url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            url.set_result(service.url)
            world = World(service, self._engines, self._proxies, disks, clock, url)
            await self._live_through(world)
            await self._reckon(world)

    async def _live_through(self, world: World) -> None:
        async def url() -> str:
            return await asyncio.shield(world.url)

        users = Users(self._folder, self.book, self.ledger, self._rng(), url)
        trouble = Trouble(world, self.book, self._rng(), self._without, long=self._long)
        calm = asyncio.Event()
        async with users.web_server():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(trouble.until(calm))
                await users.submit_all(self._jobs)
                await self._wait_until_open(world.service, max(2, self._jobs // 50), LONGEST_TROUBLE_S)
                calm.set()
            for proxy in self._proxies:
                # A socket that was deafened stays so: it is the listener's to find out.
                proxy.mischief = 0.0
            if await self._wait_until_open(world.service, 0, END_TIMEOUT_S):
                await users.heard_all()
        self.mischief = sum((proxy.counts for proxy in self._proxies), Counter())

    async def _wait_until_open(self, service: Service, most: int, bound_s: float) -> bool:
        """Wait until at most so many jobs have not ended; False when that takes too long."""
        deadline = time.monotonic() + bound_s
        while len(await reckoning.still_open(service)) > most:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.5)
        return True

    async def _reckon(self, world: World) -> None:
        service, book = world.service, self.book
        book.violations += [f"run twice: {what}" for what in self.ledger.run_twice]
        await reckoning.check_jobs(book, service, self._folder)
        if status := await service.stop():
            book.violated(f"the service stopped with {status}")
        reckoning.check_database(book, service)
        # What an upload left that was cut off with the process goes at the next start.
        await service.start()
        await reckoning.check_files(book, service)
        for engine in self._engines:
            reckoning.check_engine_files(book, engine)


def main() -> int:
    """Run, print the figures, keep the logs when something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--without", default="", help="faults to leave out: kill,cut,lose,disk,freeze,clock")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faceswap-chaos-"))
    sys.stdout.write(f"seed {arguments.seed}; logs in {folder}\n")
    sys.stdout.flush()
    started = time.monotonic()
    without = frozenset(filter(None, arguments.without.split(",")))
    chaos = Chaos(folder, arguments.jobs, arguments.seed, without, long=True)
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
        "watched live": len(book.heard),
        "violations": book.violations,
    }
    sys.stdout.write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    return 1 if book.violations else 0


if __name__ == "__main__":
    sys.exit(main())
