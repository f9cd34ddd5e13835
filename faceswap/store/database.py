"""The connections, the one transaction at a time, the events that go out after it, and the migrations."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from ..jobs import (
    Event,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

SEQ_GAP = 1000
"""How far event numbers jump when a job is taken up again: more than the unstored events a crash can swallow."""
BUSY_TIMEOUT_MS = 5000
RETRY_S = 2.0
"""Between two tries at a write that may pass."""
TOLD_EVERY_S = 60.0

_TRANSIENT = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN}
)
_MONOTONIC_EPOCH_MS = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000


class NewerDatabase(Exception):
    """The database was written by a newer version of the program."""


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Unix time in milliseconds as it was when the process started, plus the time that has passed: it never jumps."""
    return _MONOTONIC_EPOCH_MS + time.monotonic_ns() // 1_000_000


def is_transient(error: sqlite3.Error) -> bool:
    """Whether an error of the database may pass by itself: a full or failing disk, a lock. A missing column never."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _TRANSIENT


class Database:
    """Two connections. Writes go one after another through one; reads through the other see committed data only."""

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection, publish: Callable[[Event], None]):
        self._writer = writer
        self._reader = reader
        self._publish = publish
        self._lock = asyncio.Lock()
        self._seq: dict[str, int] = {}

    @classmethod
    async def open(cls, path: Path, migrations: Path, publish: Callable[[Event], None]) -> Self:
        """Open the database, brought up to date by the `migrations` folder. Raises `NewerDatabase`."""
        await asyncio.to_thread(migrate, path, migrations)
        writer = await _connect(path)
        try:
            reader = await _connect(path)
            await reader.execute("PRAGMA query_only = ON")
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader, publish)

    async def close(self) -> None:
        """Close the connections. Without it the process would hang at its exit."""
        async with self._lock:
            await self._reader.close()
            await self._writer.close()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[list[Event]]:
        """One transaction; the events put into the list it gives are stored with it and published after the commit.

        Its end runs to its end, and only then lets the next one in, even when who waits for it is cancelled.
        """
        events: list[Event] = []
        await self._lock.acquire()
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            yield events
        except BaseException:
            await asyncio.shield(self._roll_back())
            raise
        await asyncio.shield(self._commit(events))

    async def _roll_back(self) -> None:
        try:
            await self._writer.rollback()
        finally:
            self._lock.release()

    async def _commit(self, events: Iterable[Event]) -> None:
        try:
            await self._writer.commit()
            for event in events:
                self._publish(event)
                if event.terminal:
                    self._seq.pop(event.prompt_id, None)
        except sqlite3.Error:
            await self._writer.rollback()
            raise
        finally:
            self._lock.release()

    async def _one(self, sql: str, *parameters: Any) -> aiosqlite.Row | None:
        async with self._writer.execute(sql, parameters) as cursor:
            return await cursor.fetchone()

    async def _add_event(self, events: list[Event], prompt_id: str, type: str, data: Mapping[str, Any]) -> None:
        event = Event(prompt_id, await self._next_seq(prompt_id), type, data)
        encoded = json.dumps(event.data, ensure_ascii=False)
        await self._writer.execute(
            "INSERT INTO event (prompt_id, seq, type, data, at) VALUES (?, ?, ?, ?, ?)",
            (prompt_id, event.seq, type, encoded, now_ms()),
        )
        events.append(event)

    async def _next_seq(self, prompt_id: str) -> int:
        """The next event number of a job. It never repeats, not even over a crash."""
        if prompt_id not in self._seq:
            async with self._writer.execute("SELECT max(seq) FROM event WHERE prompt_id = ?", (prompt_id,)) as cursor:
                row = await cursor.fetchone()
            last = row[0] if row and row[0] is not None else 0
            self._seq.setdefault(prompt_id, last + SEQ_GAP if last else 0)
        self._seq[prompt_id] += 1
        return self._seq[prompt_id]


async def retry_writes(action: Callable[[], Awaitable[T]]) -> T:
    """Do what writes, again until a disk that was full has room. An error that cannot pass is raised at once.

    It is told in the log, at first and once a minute, and by `/readyz`.
    """
    told_at = -TOLD_EVERY_S
    while True:
        try:
            return await action()
        except sqlite3.Error as error:
            if not is_transient(error):
                raise
            if time.monotonic() - told_at >= TOLD_EVERY_S:
                told_at = time.monotonic()
                log.error("the database cannot be written, trying again until it can: %s", error)
            await asyncio.sleep(RETRY_S)


async def _connect(path: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None)
    connection.row_factory = aiosqlite.Row
    for pragma in ("synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_TIMEOUT_MS}"):
        await connection.execute(f"PRAGMA {pragma}")
    return connection


def migrate(path: Path, migrations: Path) -> None:
    """Bring a database up to date: all migrations succeed, or it is not touched. Raises `NewerDatabase`."""
    scripts = sorted(migrations.glob("[0-9]*.sql"))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(scripts):
            raise NewerDatabase(
                f"The database is of version {version}, newer than this program's {len(scripts)}; upgrade faceswap."
            )
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        if version < len(scripts):
            pending = "\n".join(script.read_text(encoding="utf-8") for script in scripts[version:])
            try:
                connection.executescript(f"BEGIN EXCLUSIVE;\n{pending}\nPRAGMA user_version = {len(scripts)};\nCOMMIT;")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
    finally:
        connection.close()
