"""The connections, the one transaction at a time, the events that go out after it, and the loop that waits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from ..events import Payload
from ..jobs import Event
from .connection import Clock, Connection, Driver, Row, StoreError, SystemClock
from .sqlite import ThreadedSQLite

T = TypeVar("T")

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""Between two tries of what a database that is away keeps from being done."""
RETRY_LIMIT_S = 24 * 3600.0
"""The time a database may be away before that is an error."""
TOLD_EVERY_S = 60.0
"""Between two lines in the log about a database that is away."""


class Database:
    """Two connections. Writes go one after another through one; reads through the other see committed data only.

    Every method of the store raises `StoreError`.
    """

    def __init__(self, writer: Connection, reader: Connection, publish: Callable[[Event], None], clock: Clock):
        self._writer = writer
        self._reader = reader
        self._publish = publish
        self._clock = clock
        self._lock = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        path: Path,
        migrations: Path,
        publish: Callable[[Event], None],
        *,
        driver: Driver | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Open the database, brought up to date by the `migrations` folder. Raises `NewerDatabase`, `StoreError`."""
        driver = driver or ThreadedSQLite()
        await driver.migrate(path, migrations)
        writer = await driver.connect(path, read_only=False)
        try:
            reader = await driver.connect(path, read_only=True)
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader, publish, clock or SystemClock())

    async def close(self) -> None:
        """Close the connections. Without it the process would hang at its exit."""
        async with self._lock:
            await self._reader.close()
            await self._writer.close()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[list[Event]]:
        """Begin a transaction, and end it; the events put into the list it gives are published after the commit.

        Its end runs to its end, and only then lets the next one in, even when who waits for it is cancelled.
        """
        events: list[Event] = []
        await self._lock.acquire()
        try:
            await self._writer.begin()
            yield events
        except BaseException:
            await asyncio.shield(self._roll_back())
            raise
        await asyncio.shield(self._commit(events))

    async def _roll_back(self) -> None:
        try:
            await self._writer.roll_back()
        finally:
            self._lock.release()

    async def _commit(self, events: Iterable[Event]) -> None:
        try:
            await self._writer.commit()
            for event in events:
                self._publish(event)
        except StoreError:
            await self._writer.roll_back()
            raise
        finally:
            self._lock.release()

    async def _run(self, sql: str, *parameters: Any) -> None:
        """Execute a statement of a transaction."""
        await self._writer.fetch(sql, parameters)

    async def _all(self, sql: str, *parameters: Any) -> Sequence[Row]:
        """Execute a statement of a transaction; returns its rows."""
        return await self._writer.fetch(sql, parameters)

    async def _one(self, sql: str, *parameters: Any) -> Row | None:
        """Execute a statement of a transaction; returns its first row, None when there is none."""
        rows = await self._writer.fetch(sql, parameters)
        return rows[0] if rows else None

    async def _read(self, sql: str, *parameters: Any) -> Sequence[Row]:
        """Return the rows that a question is answered with by what is committed."""
        return await self._reader.fetch(sql, parameters)

    async def _add_event(self, events: list[Event], prompt_id: str, payload: Payload) -> None:
        """Store an event under its job's next number; it is published after the commit."""
        seq = await self._next_seq(prompt_id)
        await self._run(
            "INSERT INTO event (prompt_id, seq, type, data, at) VALUES (?, ?, ?, ?, ?)",
            prompt_id,
            seq,
            payload.type,
            json.dumps(payload.data, ensure_ascii=False),
            self._clock.now_ms(),
        )
        events.append(Event(prompt_id, seq, payload.type, payload.data))

    async def _next_seq(self, prompt_id: str) -> int:
        """Raise a job's last event number and return it. It never repeats, not even over a crash."""
        row = await self._one(
            "UPDATE job SET last_seq = last_seq + 1 WHERE prompt_id = ? RETURNING last_seq", prompt_id
        )
        assert row is not None
        return int(row["last_seq"])


async def retry_writes(action: Callable[[], Awaitable[T]]) -> T:
    """Do what needs the database, again until it is there and its disk has room.

    It is told in the log, at first and once a minute, and by `/readyz`. Raises the `StoreError` that cannot pass, or
    has not within `RETRY_LIMIT_S`.
    """
    now = asyncio.get_running_loop().time
    started, told_at = now(), float("-inf")
    while True:
        try:
            return await action()
        except StoreError as error:
            if not error.transient or now() - started >= RETRY_LIMIT_S:
                raise
            if now() - told_at >= TOLD_EVERY_S:
                told_at = now()
                log.error("the database cannot be used, trying again until it can: %s", error)
            await asyncio.sleep(RETRY_S)
