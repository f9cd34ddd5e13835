"""The database of a world: SQLite inline, at the end of ways that nodes may be cut off from.

Where nodes share it, it behaves as PostgreSQL does towards them: each node has several sessions, all go by the clock of
the database, a session that says nothing in a transaction is ended, the answer of a commit may be lost although it was
carried out, and notes are carried to those that listen.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from faceswap.store import StoreError
from faceswap.store.connection import CommitUnknown, Connection, Dialect, Row
from faceswap.store.group_commit import Body, GroupCommit, Outcome
from faceswap.store.sqlite import PRAGMAS, InThread

from .inline import Inline, InlineConnection

if TYPE_CHECKING:
    from .loop import Machine
    from .node import Node
    from .world import World

SESSIONS = 2
"""Sessions of a node that may write at a time, where nodes share the database."""
BUSY_S = 5.0
"""The longest that a transaction waits for another."""
BUSY_PAUSE_S = 0.02
IDLE_TRANSACTION_S = 3.0
"""The longest that a session may say nothing in a transaction that another one waits for."""
ANSWER_TIMEOUT_S = 10.0
"""The time after which a node gives up a statement that is not answered."""
KEEPALIVE_S = 10.0
"""The longest that a node takes to notice that it hears no notes any more."""
NOTE_S = 0.05
"""The longest that a note is on its way."""


class Way:
    """The way from one node to the database."""

    def __init__(self, world: World) -> None:
        self.refused = False
        """True while every statement fails at once."""
        self.silent = False
        """True while nothing is answered."""
        self.lost_answers = 0.0
        """Share of the commits of which it cannot be told whether they were carried out."""
        self.sessions: list[Session] = []
        self.ears: list[Ear] = []
        self._world = world

    @property
    def is_open(self) -> bool:
        """True while the node reaches the database."""
        return not (self.refused or self.silent or self._world.database_away)

    def heal(self) -> None:
        """Let everything through."""
        self.refused = self.silent = False
        self.lost_answers = 0.0

    def end_sessions(self) -> None:
        """Have the database end all sessions of the node, what they had not committed undone."""
        for session in self.sessions:
            session.end()
        for ear in self.ears:
            ear.lose_soon()

    def close(self) -> None:
        """Let go of the connections of a process that has ended."""
        for session in self.sessions:
            session.inner.close()
        self.sessions.clear()
        self.ears.clear()

    async def check(self) -> None:
        """Raise `StoreError` when a statement cannot be sent, or is not answered in time."""
        deadline = self._world.scheduler.now + ANSWER_TIMEOUT_S
        while self.silent:
            if self._world.scheduler.now > deadline:
                raise StoreError("the database does not answer", transient=True)
            await asyncio.sleep(0.5)
        if not self.is_open:
            raise StoreError("the database is away", transient=True)


class NotedReadings(InThread):
    """The statements of a transaction that is carried out whole."""

    now_read_ms = 0
    """The last reading of the clock that leases are measured with."""

    async def monotonic_ms(self) -> int:
        self.now_read_ms = await super().monotonic_ms()
        return self.now_read_ms


class Session(InlineConnection):
    """A connection of one node, with a moment between any two statements."""

    def __init__(self, node: Node, *, read_only: bool) -> None:
        inline: Any = Inline(node.world.database)
        super().__init__(inline, node)
        self.statements = NotedReadings(node)
        for pragma in (*PRAGMAS, "synchronous = OFF", f"query_only = {read_only}"):
            inline.raw.execute(f"PRAGMA {pragma}")
        self.inner: sqlite3.Connection = inline.raw
        self.spoke_at = 0.0
        self.now_read_ms = 0
        """The last reading of the clock that leases are measured with."""
        self._node = node
        self._world = node.world
        self._is_over = False
        node.way.sessions.append(self)

    def end(self) -> None:
        """End its transaction: whoever goes on with it is told that the session is over."""
        if self.inner.in_transaction:
            self.inner.rollback()
            self._is_over = True
            self._world.note(f"{self._node.name} loses a transaction")

    async def _speak(self) -> None:
        await self._node.way.check()
        if self._is_over:
            raise StoreError("the session was ended", transient=True)
        self.spoke_at = self._world.scheduler.now

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        await self._speak()
        rows = await super().fetch(sql, parameters)
        await asyncio.sleep(0)
        return rows

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        await self._speak()
        await super().execute_many(sql, rows)

    async def begin(self, *, is_long: bool = False) -> None:
        """Begin, once no other session is in a transaction."""
        self._is_over = False
        deadline = self._world.scheduler.now + BUSY_S
        while True:
            await self._node.way.check()
            self._world.check_disk_of_database()
            try:
                await super().begin(is_long=is_long)
                return
            except StoreError:
                if self._world.scheduler.now > deadline:
                    raise
            if self._world.is_shared:
                self._world.end_idle_transactions()
            await asyncio.sleep(self._world.random.random() * BUSY_PAUSE_S)

    async def commit(self) -> None:
        """End the transaction; its answer may be lost."""
        await self._speak()
        self._world.check_disk_of_database()
        is_lost = self._world.chance(self._node.way.lost_answers)
        if is_lost and self._world.chance(0.5):
            await self.roll_back()
        else:
            await super().commit()
            self._world.invariants.committed(self._node, self.now_read_ms)
        await asyncio.sleep(0)
        if is_lost:
            raise CommitUnknown("the answer of a commit was lost")

    async def transact(self, bodies: Sequence[Body[Any]]) -> list[Outcome]:
        """Carry out transactions that have one commit, at once, with a moment before and after."""
        await self._speak()
        self._world.check_disk_of_database()
        await asyncio.sleep(0)
        outcomes = await super().transact(bodies)
        self._world.invariants.committed(self._node, self.statements.now_read_ms)
        await asyncio.sleep(0)
        return outcomes

    async def monotonic_ms(self) -> int:
        self.now_read_ms = await super().monotonic_ms()
        return self.now_read_ms


class Ear:
    """A node's connection on which notes come. `lost` ends with an error once the node notices that nothing comes."""

    def __init__(self, node: Node, machine: Machine, on_note: Callable[[str], None]) -> None:
        self.lost: asyncio.Future[None] = machine.create_future()
        self._node = node
        self._machine = machine
        self._on_note = on_note
        self._next_at = 0.0

    def send(self, note: str) -> None:
        """Send a note, which arrives after those before it, unless the way is cut by then."""
        world = self._node.world
        self._next_at = max(self._next_at, world.scheduler.now + world.random.random() * NOTE_S)
        world.environment.call_later(self._next_at - world.scheduler.now, self._arrive, note)

    def _arrive(self, note: str) -> None:
        if self._node.way.is_open and not self.lost.done():
            self._machine.call_soon(self._on_note, note)
        else:
            self.lose_soon()

    def lose_soon(self) -> None:
        """Have the node notice, sooner or later, that nothing comes any more."""
        world = self._node.world
        delay_s = world.random.uniform(0, KEEPALIVE_S) if self._node.way.silent else 0.0
        world.environment.call_later(delay_s, self._lose)

    def _lose(self) -> None:
        if not self.lost.done():
            self.lost.set_exception(StoreError("notes are not heard any more", transient=True))


class SimulatedEngine:
    """The database as one process of a node has it open."""

    dialect = Dialect()
    queue = None

    def __init__(self, node: Node) -> None:
        self.is_shared = node.world.is_shared
        self._node = node
        self._reader = Session(node, read_only=True)
        self._free: asyncio.Queue[Session] = asyncio.Queue()
        sessions = [Session(node, read_only=False) for _ in range(SESSIONS if self.is_shared else 1)]
        for session in sessions:
            self._free.put_nowait(session)
        self.group = None if self.is_shared else GroupCommit(sessions[0], asyncio.Lock(), None)

    async def acquire(self) -> Connection:
        """Wait for a session that may write."""
        return await self._free.get()

    async def release(self, connection: Connection) -> None:
        """Give a session back."""
        assert isinstance(connection, Session)
        self._free.put_nowait(connection)

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the rows that a question is answered with by what is committed."""
        return await self._reader.fetch(sql, parameters)

    async def now_ms(self) -> int:
        """Return the Unix time as the node's clock shows it, which may jump; that of a database that is shared."""
        return self._node.now_ms()

    async def monotonic_ms(self) -> int:
        """Return the time by which leases end."""
        return self._node.monotonic_ms()

    async def notify(self, notes: Sequence[str]) -> None:
        """Tell all nodes that listen."""
        await self._node.way.check()
        for node in self._node.world.nodes:
            for ear in node.way.ears:
                for note in notes:
                    ear.send(note)
        await asyncio.sleep(0)

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        """Hear notes until that is not possible any more."""
        await self._node.way.check()
        assert self._node.machine is not None
        ear = Ear(self._node, self._node.machine, on_note)
        self._node.way.ears.append(ear)
        try:
            on_listening()
            await ear.lost
        finally:
            if ear in self._node.way.ears:
                self._node.way.ears.remove(ear)

    async def shrink(self) -> None:
        """Do nothing: no simulation lasts as long as a record."""

    async def close(self) -> None:
        """End the sessions."""
        self._node.way.close()
