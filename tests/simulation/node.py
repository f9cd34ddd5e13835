"""One process of the service: its parts wired as `app.create_app` wires them, on a machine that may die."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from faceswap.comfy.backend import Backend, BackendPool
from faceswap.config import Settings
from faceswap.events import Event
from faceswap.feed import Feed
from faceswap.files import FilesUnavailable
from faceswap.hub import Hub
from faceswap.janitor import Janitor
from faceswap.node import Node as Membership
from faceswap.progress_reporter import ProgressReporter
from faceswap.scheduler import Scheduler
from faceswap.store import LOCAL_HOLDER, Store, StoreError

from .comfyui import SimulatedClient
from .database import SimulatedEngine, Way
from .loop import Machine
from .media import SimulatedMedia
from .outbox import SimulatedOutbox

if TYPE_CHECKING:
    from .world import World

STOP_S = 30.0
"""The time after which a process that was told to stop is killed."""


class WatchedHub(Hub):
    """The hub of a node: what its watchers are told is judged."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def publish(self, event: Event) -> None:
        self._node.world.invariants.published(self._node, event)
        super().publish(event)


class Node:
    """A node of the service, started again after each crash. `gone_at`: the time from which on it is not any more."""

    def __init__(self, world: World, name: str, rate: float) -> None:
        self.world = world
        self.name = name
        self.machine: Machine | None = None
        self.ready = False
        self.stopping = False
        self.gone_at: float | None = None
        self.way = Way(world)
        self.last_published: dict[str, int] = {}
        self.clock_s = 0.0
        self.on_move: Callable[[], None] | None = None
        """Called when it commits the next move of a segment, or has taken a lease."""
        self._started_at = self._started_ms = 0
        self._rate = rate
        self._main: asyncio.Task[None] | None = None
        self._then: Callable[[], None] = lambda: None

    @property
    def holder(self) -> str:
        """The name under which it holds leases."""
        return self.name if self.world.is_shared else LOCAL_HOLDER

    def now_ms(self) -> int:
        """Return the Unix time by its clock, which may jump; that of the database where nodes share it."""
        clock_s = 0.0 if self.world.is_shared else self.clock_s
        return self.world.wall_ms + int(clock_s * 1000)

    def monotonic_ms(self) -> int:
        """Return the time by which leases end: as it was when it started, and what has passed since."""
        return self.world.wall_ms if self.world.is_shared else self._started_ms + self.world.wall_ms - self._started_at

    def moved(self) -> None:
        """Take note of a move that is a good moment for something to go wrong."""
        if self.on_move is not None:
            self.on_move()
            self.on_move = None

    @property
    def work(self) -> str:
        """The attempts and joins that it has in hand."""
        return f"{list(self.scheduler._attempts)} {list(self.scheduler._joins)}" if self.ready else "nothing"

    @property
    def is_idle(self) -> bool:
        """True while it has no attempt and no join in hand."""
        return not self.ready or not (self.scheduler._attempts or self.scheduler._joins)

    def start(self) -> None:
        """Start the process."""
        assert self.machine is None
        self.world.note(f"{self.name} starts")
        self.machine = Machine(self.world.scheduler, self.name, self._rate)
        self.machine.clock_s = self.clock_s
        self._started_at, self._started_ms = self.world.wall_ms, self.now_ms()
        self.last_published.clear()
        for comfy in self.world.comfies:
            if comfy.is_embedded and self in comfy.named_by:
                comfy.start()
        self._main = self.machine.spawn(self._run_again(), "main")
        self._main.add_done_callback(self._ended)

    def kill(self) -> None:
        """End the process at once: what was not committed is undone."""
        if self.machine is None:
            return
        self.world.note(f"{self.name} ends")
        machine, self.machine, self.ready, self.on_move = self.machine, None, False, None
        self.stopping = False
        machine.kill()
        self.way.close()
        for comfy in self.world.comfies:
            if comfy.is_embedded and self in comfy.named_by:
                comfy.die()
            else:
                comfy.machine_died(machine)
        self.world.users.machine_died(machine)
        then, self._then = self._then, lambda: None
        then()

    def stop(self, then: Callable[[], None]) -> None:
        """Tell the process to stop, as `serve` is told by its supervisor, and do something once it has."""
        assert self.machine is not None
        assert self._main is not None
        self.world.note(f"{self.name} is told to stop")
        self.ready, self.stopping, self._then = False, True, then
        machine = self.machine
        self.machine.call_soon(self.hub.close)
        self.machine.call_soon(self._main.cancel)

        def kill() -> None:
            if self.machine is machine:
                self.world.note(f"{self.name} does not stop")
                self.kill()

        self.world.environment.call_later(STOP_S, kill)

    def _ended(self, main: asyncio.Task[None]) -> None:
        if main.cancelled() and self.stopping:
            self.kill()
        else:
            self.world.fail(f"{self.name} ended: {main if main.cancelled() else main.exception()!r}")

    async def _run_again(self) -> None:
        """Run as under a supervisor: it does not start without its database and its files, and is started again."""
        while True:
            self.hub = WatchedHub(self)
            self.feed = Feed(self.hub)
            try:
                await self._run()
            except (StoreError, FilesUnavailable) as error:
                self.world.note(f"{self.name} cannot start: {error}")
                await asyncio.sleep(1.0)

    async def _run(self) -> None:
        world = self.world
        files = self.files = world.files_of(self)
        await files.start()
        store = self.store = Store(SimulatedEngine(self), self.feed.publish)
        self.feed.attach(store)
        try:
            pool = BackendPool()
            for comfy in world.comfies:
                if self in comfy.named_by:
                    client_id = await store.client_id(comfy.name)
                    if world.is_shared:
                        client_id = uuid.uuid5(uuid.UUID(client_id), self.holder).hex
                    backend = Backend(pool, comfy.name, SimulatedClient(comfy), client_id, world.timeouts)
                    backend.address_known.set()
            media: Any = SimulatedMedia(world)
            reporter = ProgressReporter(store, files)
            membership = Membership(store, self.holder, pool, world.timeouts.node_gone_s, shares_files=files.is_shared)
            await membership.join()
            self.scheduler = Scheduler(
                store, files, media, reporter, world.workflows, pool, world.timeouts, self.feed, membership
            )
            outbox = SimulatedOutbox(world, store, files, self.holder)
            janitor = Janitor(Settings(data_dir=files.root), store, files, self.holder)
            await janitor.clear_debris()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.feed.run(), name="feed")
                    tasks.create_task(self.scheduler.run(), name="scheduler")
                    tasks.create_task(janitor.run(), name="janitor")
                    tasks.create_task(outbox.run(), name="outbox")
                    self.ready = True
            finally:
                self.ready = False
                await membership.leave()
        finally:
            await store.close()
            await files.close()
