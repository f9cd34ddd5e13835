"""One process of the service: its parts wired as `app.create_app` wires them, on a machine that may die."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from faceswap.comfy.backend import Backend, BackendPool
from faceswap.config import Settings, resource_dir
from faceswap.errors import JobFailure
from faceswap.feed import Feed
from faceswap.files import Files
from faceswap.hub import Hub
from faceswap.janitor import Janitor
from faceswap.jobs import Event
from faceswap.media import JoinFacts, PieceFacts, Verdict
from faceswap.progress_reporter import ProgressReporter
from faceswap.scheduler import Scheduler
from faceswap.store import Store, StoreError
from faceswap.store.sqlite import SQLite, migrate

from .comfyui import SimulatedClient
from .inline import InlineConnection
from .loop import WALL_S, Machine

if TYPE_CHECKING:
    from .world import World

BUSY_S = 5.0
"""The longest that a transaction waits for that of another node."""
BUSY_PAUSE_S = 0.02


class SimulatedClock:
    """A node's clock as the store asks for it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._started_ms = self.now_ms()
        self._started_at = node.world.scheduler.now

    def now_ms(self) -> int:
        """Unix time as the node's clock shows it, which may jump."""
        return int((WALL_S + self._node.world.scheduler.now + self._node.clock_s) * 1000)

    def monotonic_ms(self) -> int:
        """Unix time as it was at the start, plus what has passed; that of the database where several nodes share it."""
        now = self._node.world.scheduler.now
        if len(self._node.world.nodes) > 1:
            return int((WALL_S + now) * 1000)
        return self._started_ms + int((now - self._started_at) * 1000)


class SimulatedConnection(InlineConnection):
    """A connection of one node: a database that may be away, and a moment between any two statements."""

    _node: Node

    @classmethod
    async def of(cls, node: Node, *, read_only: bool) -> Self:
        """Open a connection of a node."""
        connection = await cls.connect(node.world.files.database, node.clock, read_only=read_only)
        connection.raw.raw.execute("PRAGMA synchronous = OFF")
        connection._node = node
        node.connections.append(connection)
        return connection

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        self._node.world.check_database()
        rows = await super().fetch(sql, parameters)
        await asyncio.sleep(0)
        return rows

    async def begin(self) -> None:
        """Begin, once no other node is at it: a lock is waited for as SQLite does."""
        deadline = asyncio.get_running_loop().time() + BUSY_S
        while True:
            self._node.world.check_disk_of_database()
            try:
                await super().begin()
                self._node.begun_at_ms = self._node.clock.monotonic_ms()
                return
            except StoreError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(self._node.world.random.random() * BUSY_PAUSE_S)

    async def commit(self) -> None:
        self._node.world.check_disk_of_database()
        await super().commit()
        self._node.world.invariants.committed(self._node)
        await asyncio.sleep(0)


class SimulatedMedia:
    """Stands for the media worker: a clip is a small document that names its frames."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def _work(self) -> None:
        await asyncio.sleep(self._world.random.random() * 0.2)
        self._world.check_disk()
        if self._world.chance(self._world.media_trouble):
            raise JobFailure("media_failed", "Checking the result was cut short.", transient=True)

    async def cuttable(self, source: Path) -> bool:
        await self._work()
        return True

    async def cut(
        self,
        source: Path,
        out: Path,
        first_frame: int,
        frame_count: int,
        frame_rate: Fraction | None,
        max_bytes: int | None,
    ) -> PieceFacts:
        await self._work()
        clip = json.loads(source.read_text(encoding="utf-8"))
        piece = {**clip, "first": clip["first"] + first_frame, "count": frame_count}
        out.write_text(json.dumps(piece), encoding="utf-8")
        return PieceFacts(0, ".mp4")

    async def join(self, segments: Sequence[Path], source: Path, out: Path, frame_rate: Fraction | None) -> JoinFacts:
        await self._work()
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in segments]
        text = json.dumps(parts)
        out.write_text(text, encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        return JoinFacts(len(text), digest, sum(part["count"] for part in parts), 1.0, ())

    async def verify(
        self,
        result: Path,
        source: Path,
        *,
        first_frame: int,
        frame_count: int,
        frame_rate: Fraction | None,
        crf: int | None,
    ) -> Verdict:
        part = json.loads(result.read_text(encoding="utf-8"))
        try:
            await self._work()
        except JobFailure:
            self._world.invariants.rejected.add(part["by"])
            raise
        if (part["first"], part["count"]) != (first_frame, frame_count):
            raise JobFailure("frames_missing", "The result has other frames.")
        return Verdict(frame_count, 1.0, ())


class Node:
    """A node of the service, started again after each crash."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.machine: Machine | None = None
        self.ready = False
        self.connections: list[InlineConnection] = []
        self.last_published: dict[str, int] = {}
        self.clock_s = 0.0
        self.on_move: Callable[[], None] | None = None
        """Called at the next move of a segment that it commits."""
        self.begun_at_ms = 0
        """The beginning of its transaction, by the clock that leases are measured with."""

    def start(self) -> None:
        """Start the process."""
        assert self.machine is None
        self.world.note(f"{self.name} starts")
        self.machine = Machine(self.world.scheduler, self.name)
        self.machine.clock_s = self.clock_s
        self.last_published.clear()
        main = self.machine.spawn(self._main(), "main")
        main.add_done_callback(self._ended)

    def kill(self) -> None:
        """End the process at once: what was not committed is undone."""
        if self.machine is None:
            return
        self.world.note(f"{self.name} is killed")
        machine, self.machine, self.ready, self.on_move = self.machine, None, False, None
        machine.kill()
        for connection in self.connections:
            connection.raw.raw.close()
        self.connections.clear()
        for comfy in self.world.comfies:
            comfy.machine_died(machine)

    def _ended(self, main: asyncio.Task[None]) -> None:
        self.world.fail(f"{self.name} ended: {main.exception()!r}")

    def _publish(self, event: Event) -> None:
        self.world.invariants.published(self, event)
        self.feed.publish(event)

    async def _main(self) -> None:
        world = self.world
        self.feed = Feed(Hub())
        while True:
            try:
                await self._run()
            except StoreError as error:
                # As serve does: it does not start without its database, and whoever looks after it tries again.
                world.note(f"{self.name} cannot start: {error}")
                await asyncio.sleep(1.0)

    async def _run(self) -> None:
        world = self.world
        self.clock = SimulatedClock(self)
        self.files = Files(world.files.root, self.name)
        migrate(world.files.database, resource_dir("migrations"))
        writer = await SimulatedConnection.of(self, read_only=False)
        engine = SQLite(writer, await SimulatedConnection.of(self, read_only=True))
        store = self.store = Store(engine, self._publish)
        pool = BackendPool()
        for comfy in world.comfies:
            client_id = await store.client_id(comfy.name)
            backend = Backend(pool, comfy.name, SimulatedClient(comfy), client_id, world.timeouts)
            backend.address_known.set()
        media: Any = SimulatedMedia(world)
        reporter = ProgressReporter(store)
        self.scheduler = Scheduler(store, self.files, media, reporter, world.workflows, pool, world.timeouts, self.name)
        janitor = Janitor(Settings(data_dir=self.files.root), store, self.files, self.name)
        await janitor.clear_debris()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.scheduler.run(), name="scheduler")
            tasks.create_task(janitor.run(), name="janitor")
            self.ready = True
