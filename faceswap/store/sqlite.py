"""SQLite: one connection that writes, one that reads, each with a thread of its own."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from .. import durable
from .changes import (
    SELECT_TURNS,
    SELECT_UNENDED,
    SELECT_WAITING,
    Change,
    JobChange,
    TurnChange,
    WaitingChange,
    note_changes,
)
from .connection import Clock, Connection, Dialect, Row, StoreError, SystemClock, newer_database, scripts
from .group_commit import Body, GroupCommit, Outcome
from .queue import Queue

T = TypeVar("T")

BUSY_TIMEOUT_MS = 5000
"""The time another process may keep the database locked before that is an error."""

PRAGMAS = ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON")
STATEMENTS = 256
"""Prepared statements that a connection keeps: more than the store has."""
SHRINK_PAGES = 250
"""Pages (1 MB) that the file is shortened by at a time."""
SPARE_PAGES = 250
"""Free pages that are left in the file, to be used again."""
CHECKPOINT_TIMEOUT_MS = 100
"""The time that emptying the write-ahead log waits for who reads; it is tried again later."""

_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
    }
)


def store_error(error: sqlite3.Error) -> StoreError:
    """Return what an error of SQLite means to the service."""
    # The low byte is the kind of failure, the rest its circumstances.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return StoreError(str(error), transient=kind in _TRANSIENT, disk_full=kind == sqlite3.SQLITE_FULL)


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise errors of SQLite as what they mean to the service."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error) from error


class DatabaseThread(aiosqlite.Connection):
    """A connection that can be used, within its thread, for many statements in one call."""

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function in the thread with the connection; returns what it returned."""
        result: T = await self._execute(function, self._conn)  # type: ignore[no-untyped-call]  # it has no types
        return result


class _Timed:
    """A connection that tells the time of a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds. It may jump."""
        return self._clock.now_ms()

    async def monotonic_ms(self) -> int:
        """Return the time in milliseconds by which leases and pauses end. It never jumps."""
        return self._clock.monotonic_ms()


class InThread(_Timed):
    """The statements of a transaction, executed by the thread that its body runs in."""

    raw: sqlite3.Connection
    """The connection, while a body runs."""

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement; returns its rows."""
        with store_errors():
            return self.raw.execute(sql, parameters).fetchall()

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""
        with store_errors():
            self.raw.executemany(sql, rows)


class SQLiteConnection(_Timed):
    """A connection whose statements are executed by a thread, one after another. Times are those of a `Clock`."""

    def __init__(self, raw: DatabaseThread, clock: Clock) -> None:
        super().__init__(clock)
        self.raw = raw
        self.statements = InThread(clock)
        self._changes: list[Change] = []

    @classmethod
    async def connect(cls, path: Path, clock: Clock, *, read_only: bool) -> Self:
        """Open a connection; in one that is `read_only` nothing can be written."""
        with store_errors():
            raw = DatabaseThread(partial(sqlite3.connect, path, isolation_level=None, cached_statements=STATEMENTS), 64)
            await raw
            raw.row_factory = aiosqlite.Row
            try:
                for pragma in (*PRAGMAS, f"busy_timeout = {BUSY_TIMEOUT_MS}", f"query_only = {read_only}"):
                    await raw.execute(f"PRAGMA {pragma}")
            except BaseException:
                await raw.close()
                raise
        return cls(raw, clock)

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement; returns its rows."""
        with store_errors():
            return list(await self.raw.execute_fetchall(sql, parameters))

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""
        with store_errors():
            await self.raw.executemany(sql, rows)

    async def begin(self, *, is_long: bool = False) -> None:
        """Begin a transaction that may write. None has a time limit here."""
        await self.fetch("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        """End the transaction; what it wrote is on the disk."""
        with store_errors():
            await self.raw.commit()

    async def roll_back(self) -> None:
        """End the transaction, if there is one, as if it had not been."""
        with store_errors():
            await self.raw.rollback()
        self._changes.clear()

    async def transact(self, bodies: Sequence[Body[Any]]) -> list[Outcome]:
        """Carry out the bodies of transactions, within the thread, and commit what they did.

        Raises `StoreError` when nothing of it could be kept.
        """
        with store_errors():
            return await self.raw.call(partial(self._transact, bodies))

    def _transact(self, bodies: Sequence[Body[Any]], raw: sqlite3.Connection) -> list[Outcome]:
        self.statements.raw = raw
        raw.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [self._carry_out(raw, body) for body in bodies]
            raw.commit()
        except BaseException:
            raw.rollback()
            self._changes.clear()
            raise
        return outcomes

    def _carry_out(self, raw: sqlite3.Connection, body: Body[Any]) -> Outcome:
        """Carry out the body of one of several transactions with one commit; undo what it did if it raises."""
        noted = len(self._changes)
        raw.execute("SAVEPOINT one")
        try:
            outcome = Outcome(_result_of(body()))
        except Exception as error:  # whatever it is, it is given to who waits for the body
            if not raw.in_transaction:  # SQLite has undone all of them, as when the disk is full
                raise
            raw.execute("ROLLBACK TO one")
            del self._changes[noted:]
            outcome = Outcome(error=error)
        raw.execute("RELEASE one")
        return outcome

    async def note_changes(self) -> None:
        """Note from now on what is changed of jobs and turns, and what waits, for `take_changes`."""
        with store_errors():
            await self.raw.call(lambda raw: note_changes(raw, self._note))

    def _note(self, change: Change) -> None:
        self._changes.append(change)

    def take_changes(self) -> Sequence[Change]:
        """Return what was committed since the last call."""
        taken, self._changes = self._changes, []
        return taken

    async def close(self) -> None:
        """End the connection and its thread."""
        await self.raw.close()


def _result_of(body: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits; returns its result."""
    try:
        body.send(None)
    except StopIteration as ended:
        return ended.value
    body.close()
    raise RuntimeError("the body of a transaction waited for something else than its statements")


class SQLite:
    """A file of SQLite. Writes go one after another through one connection; reads have another."""

    dialect = Dialect()
    is_shared = False

    def __init__(self, writer: SQLiteConnection, reader: SQLiteConnection, queue: Queue | None = None) -> None:
        self.writer = writer
        self.reader = reader
        self.queue = queue
        self._lock = asyncio.Lock()
        self.group = GroupCommit(writer, self._lock, queue)

    @classmethod
    async def open(cls, path: Path, migrations: Path, clock: Clock | None = None) -> Self:
        """Open a file, brought up to date by the `migrations` folder. Raises `NewerDatabase`."""
        clock = clock or SystemClock()
        await asyncio.to_thread(migrate, path, migrations)
        writer = await SQLiteConnection.connect(path, clock, read_only=False)
        try:
            await writer.note_changes()
            queue = Queue(
                [JobChange(*row) for row in await writer.fetch(SELECT_UNENDED)],
                [TurnChange(*row) for row in await writer.fetch(SELECT_TURNS)],
                WaitingChange(*(await writer.fetch(SELECT_WAITING))[0]),
            )
            reader = await SQLiteConnection.connect(path, clock, read_only=True)
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader, queue)

    async def acquire(self) -> Connection:
        """Wait until nobody else writes; returns the connection that writes."""
        await self._lock.acquire()
        return self.writer

    async def release(self, connection: Connection) -> None:
        """Let the next one write."""
        if self.queue is not None:
            self.queue.apply(self.writer.take_changes())
        self._lock.release()

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Return the rows that a question is answered with by what is committed."""
        return await self.reader.fetch(sql, parameters)

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds. It may jump."""
        return await self.reader.now_ms()

    async def monotonic_ms(self) -> int:
        """Return the time in milliseconds by which leases and pauses end. It never jumps."""
        return await self.reader.monotonic_ms()

    async def notify(self, notes: Sequence[str]) -> None:
        """Tell nobody: there is one node only, which knows."""

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        """Hear nothing, until cancelled."""
        on_listening()
        await asyncio.Event().wait()

    async def shrink(self) -> None:
        """Shorten the file by its free pages, and empty the write-ahead log, which holds what was deleted.

        Writers get their turn after every `SHRINK_PAGES`.
        """
        before, free = math.inf, await self._free_pages()
        while SPARE_PAGES < free < before:
            async with self._lock:
                await self.writer.fetch(f"PRAGMA incremental_vacuum({SHRINK_PAGES})")
            before, free = free, await self._free_pages()
        async with self._lock:
            await self.writer.fetch(f"PRAGMA busy_timeout = {CHECKPOINT_TIMEOUT_MS}")
            try:
                await self.writer.fetch("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                await self.writer.fetch(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    async def _free_pages(self) -> int:
        return int((await self.reader.fetch("PRAGMA freelist_count"))[0][0])

    async def close(self) -> None:
        """End both connections, once nobody writes."""
        await self.group.close()
        async with self._lock:
            await self.reader.close()
            await self.writer.close()


def _companions(path: Path) -> list[Path]:
    """Return the names of the files that belong to a database which is in use."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


def copy_database(path: Path, target: Path) -> None:
    """Write a consistent copy of a database that others may be using: whole and on the disk, or not at all.

    It takes the place of an older file at once. Raises `StoreError`, `OSError`.
    """
    if target.exists() and target.samefile(path):
        raise FileExistsError(f"{target} is the database itself.")
    if found := [name for name in _companions(target) if name.exists()]:
        raise FileExistsError(f"There is a file {found[0]}: {target} may be a database that is in use.")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with store_errors(), closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("VACUUM INTO ?", (str(partial),))
        durable.sync(partial)
        durable.rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def migrate(path: Path, migrations: Path) -> None:
    """Bring a database up to date: all migrations succeed, or it is not touched.

    Raises `NewerDatabase` and `StoreError`.
    """
    known = scripts(migrations, "sqlite")
    newest = max(known)
    with store_errors(), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > newest:
            raise newer_database(version, newest)
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        if version < newest:
            pending = "\n".join(script for number, script in known.items() if number > version)
            try:
                connection.executescript(f"BEGIN EXCLUSIVE;\n{pending}\nPRAGMA user_version = {newest};\nCOMMIT;")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def find_version(path: Path, migrations: Path) -> tuple[int | None, int]:
    """Return the version of a database, None where there is none yet, and this program's. Nothing is changed.

    Raises `NewerDatabase`, and `StoreError` for one that is damaged or cannot be written to.
    """
    newest = max(scripts(migrations, "sqlite"))
    if not path.exists():
        return None, newest
    with store_errors(), closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)) as found:
        found.execute("BEGIN IMMEDIATE")
        found.execute("ROLLBACK")
        version = int(found.execute("PRAGMA user_version").fetchone()[0])
        damage = found.execute("PRAGMA quick_check(1)").fetchone()[0]
    if version not in range(newest + 1):
        raise newer_database(version, newest)
    if damage != "ok":
        raise StoreError(f"it is damaged: {damage}", transient=False)
    return version or None, newest
