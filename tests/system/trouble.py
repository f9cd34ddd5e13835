"""Faults of a chaos run, one after the other: each runs to its end, so that in the end all parts work again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

from processes import files_in
from system.book import Book
from system.disks import Disk
from system.world import Node, World

PAUSE_S = (0.3, 2.0)
FROZEN_S = (0.5, 6.0)
LONG_FROZEN_S = (35.0, 45.0)
"""Longer than an engine that says nothing is waited for while there is another."""
FULL_S = (0.2, 2.0)
LONG_FULL_S = (15.0, 25.0)
"""Longer than all the pauses between the attempts at what may pass by itself."""
LONG_SHARE = 0.25
JUMPS_S = (-3 * 3600, -60, -5, 5, 60, 3 * 3600)


Cause = Callable[[], Awaitable[None]]


class Trouble:
    """Causes faults until all is to be calm. `without` names kinds that are left out.

    With `long` some of those that last are longer than the service waits by default.
    """

    def __init__(self, world: World, book: Book, rng: random.Random, without: frozenset[str], *, long: bool) -> None:
        self._world = world
        self._book = book
        self._rng = rng
        self._long = long
        self._without = without
        kinds = self._kinds()
        if unknown := without - kinds.keys():
            raise ValueError(f"no such faults: {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")

    def _kinds(self) -> dict[str, list[tuple[Cause, int]]]:
        """Return the kinds of faults: how they are caused, and how often."""
        return {
            "kill": [(self._kill_service, 3), (self._kill_engine, 3), (self._kill_both, 1)],
            "cut": [(self._cut_sockets, 3)],
            "lose": [(self._lose_outputs, 2)],
            "disk": [(self._fill_the_services_disk, 2), (self._fill_an_engines_disk, 2)],
            "freeze": [(self._freeze_engine, 2), (self._freeze_engine_and_kill_service, 2)],
            "clock": [(self._jump, 2)],
        }

    async def until(self, calm: asyncio.Event) -> None:
        """Cause one fault after the other, each to its end: killed processes run again, full disks are free."""
        async for _ in self._cause_faults(calm, self._kinds(), self._rng):
            await self._revive()

    async def _cause_faults(
        self, calm: asyncio.Event, kinds: dict[str, list[tuple[Cause, int]]], rng: random.Random
    ) -> AsyncIterator[None]:
        """Cause faults of these kinds, and come back after each."""
        chosen = [cause for kind, causes in kinds.items() if kind not in self._without for cause in causes]
        while chosen and not calm.is_set():
            causes, weights = zip(*chosen, strict=True)
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            (cause,) = rng.choices(causes, weights)
            self._book.faults[cause.__name__.strip("_").replace("_", " ")] += 1
            await cause()
            yield

    async def _revive(self) -> None:
        """Start again what ended by itself, as systemd would; nothing should have."""
        for number, engine in enumerate(self._world.engines):
            if not engine.running:
                self._book.violated(f"engine {number} ended by itself: {engine.log()[-500:]}")
                self._world.proxies[number].engine_died()
                await engine.start()
        for node in self._world.nodes:
            if not node.service.running:
                self._book.violated(f"{node.name} ended by itself: {node.service.log()[-500:]}")
                await self._restart(node)

    def _engine(self) -> int:
        return self._rng.randrange(len(self._world.engines))

    def _node(self) -> Node:
        return self._rng.choice(self._world.nodes)

    async def _kill_service(self) -> None:
        await self._restart(self._node())

    async def _restart(self, node: Node) -> None:
        await node.kill()
        await node.start()

    async def _kill_engine(self) -> None:
        number = self._engine()
        await self._kill(number)
        await asyncio.sleep(self._rng.uniform(0, 1))
        await self._world.engines[number].start()

    async def _kill(self, number: int) -> None:
        await self._world.engines[number].kill()
        self._world.proxies[number].engine_died()

    async def _kill_both(self) -> None:
        number = self._engine()
        await self._kill(number)
        await self._kill_service()
        await self._world.engines[number].start()

    async def _cut_sockets(self) -> None:
        for proxy in self._world.proxies:
            await proxy.cut_sockets()

    async def _lose_outputs(self) -> None:
        """Delete an engine's outputs that were not downloaded yet."""
        output = self._world.engines[self._engine()].data_dir / "temp"
        for name in files_in(output):
            if "/" in name:  # a job's; the rest is what the engine is at work on
                (output / name).unlink(missing_ok=True)

    async def _fill_the_services_disk(self) -> None:
        await self._fill(self._rng.choice(self._world.node_disks))

    async def _fill_an_engines_disk(self) -> None:
        await self._fill(self._world.engine_disks[self._engine()])

    async def _fill(self, disk: Disk) -> None:
        disk.fill()
        await self._last(FULL_S, LONG_FULL_S)
        disk.free()

    async def _freeze_engine(self) -> None:
        await self._freeze(self._engine())

    async def _freeze_engine_and_kill_service(self) -> None:
        number = self._engine()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._freeze(number))
            tasks.create_task(self._kill_service())

    async def _freeze(self, number: int) -> None:
        """Freeze an engine for a while: it keeps its connections, accepts new ones, and answers nothing."""
        engine, proxy = self._world.engines[number], self._world.proxies[number]
        proxy.freeze()
        os.kill(engine.pid, signal.SIGSTOP)
        await self._last(FROZEN_S, LONG_FROZEN_S)
        os.kill(engine.pid, signal.SIGCONT)
        proxy.thaw()

    async def _last(self, short_s: tuple[float, float], long_s: tuple[float, float]) -> None:
        is_long = self._long and self._rng.random() < LONG_SHARE
        await asyncio.sleep(self._rng.uniform(*(long_s if is_long else short_s)))

    async def _jump(self) -> None:
        """Set a service's clock wrong."""
        self._node().clock.write_text(str(self._rng.choice(JUMPS_S)))
