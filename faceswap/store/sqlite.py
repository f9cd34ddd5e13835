"""SQLite behind the interface of a connection: in a thread of its own, or inline."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite

from .connection import NewerDatabase, Row, StoreError

BUSY_TIMEOUT_MS = 5000
"""The time another process may keep the database locked before that is an error."""

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
_PRAGMAS = ("synchronous = FULL", "foreign_keys = ON")


def store_error(error: sqlite3.Error) -> StoreError:
    """Return what an error of SQLite means to the service."""
    # The low byte is the kind of failure, the rest its circumstances.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return StoreError(str(error), transient=kind in _TRANSIENT, disk_full=kind == sqlite3.SQLITE_FULL)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error) from error


class ThreadedSQLite:
    """SQLite as the service uses it: each connection has a thread, so that the event loop never waits for the disk."""

    async def migrate(self, path: Path, migrations: Path) -> None:
        """Bring a database up to date: all migrations succeed, or it is not touched. Raises `NewerDatabase`."""
        await asyncio.to_thread(migrate, path, migrations)

    async def connect(self, path: Path, *, read_only: bool) -> ThreadedConnection:
        """Open a connection; in one that is `read_only` nothing can be written."""
        with _store_errors():
            raw = await aiosqlite.connect(path, isolation_level=None)
            raw.row_factory = aiosqlite.Row
            try:
                for pragma in (*_PRAGMAS, f"busy_timeout = {BUSY_TIMEOUT_MS}", f"query_only = {read_only}"):
                    await raw.execute(f"PRAGMA {pragma}")
            except BaseException:
                await raw.close()
                raise
        return ThreadedConnection(raw)


class ThreadedConnection:
    """A connection whose statements are executed by a thread, one after another."""

    def __init__(self, raw: aiosqlite.Connection) -> None:
        self.raw = raw

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement; returns its rows."""
        with _store_errors():
            return list(await self.raw.execute_fetchall(sql, parameters))

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""
        with _store_errors():
            await self.raw.executemany(sql, rows)

    async def begin(self) -> None:
        """Begin a transaction that may write."""
        await self.fetch("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        """End the transaction; what it wrote is on the disk."""
        with _store_errors():
            await self.raw.commit()

    async def roll_back(self) -> None:
        """End the transaction, if there is one, as if it had not been."""
        with _store_errors():
            await self.raw.rollback()

    async def close(self) -> None:
        """End the connection and its thread."""
        await self.raw.close()


class InlineSQLite:
    """SQLite without threads: a statement is done when it was called, and a lock of another is an error at once.

    It makes the order of everything that happens in a simulation depend on its seed only.
    """

    async def migrate(self, path: Path, migrations: Path) -> None:
        """Bring a database up to date: all migrations succeed, or it is not touched. Raises `NewerDatabase`."""
        migrate(path, migrations)

    async def connect(self, path: Path, *, read_only: bool) -> InlineConnection:
        """Open a connection; in one that is `read_only` nothing can be written."""
        with _store_errors():
            raw = sqlite3.connect(path, isolation_level=None, timeout=0)
            raw.row_factory = sqlite3.Row
            for pragma in (*_PRAGMAS, f"query_only = {read_only}"):
                raw.execute(f"PRAGMA {pragma}")
        return InlineConnection(raw)


class InlineConnection:
    """A connection whose statements are executed by whoever calls."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement; returns its rows."""
        with _store_errors():
            return self.raw.execute(sql, parameters).fetchall()

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""
        with _store_errors():
            self.raw.executemany(sql, rows)

    async def begin(self) -> None:
        """Begin a transaction that may write."""
        await self.fetch("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        """End the transaction; what it wrote is on the disk."""
        with _store_errors():
            self.raw.commit()

    async def roll_back(self) -> None:
        """End the transaction, if there is one, as if it had not been."""
        with _store_errors():
            self.raw.rollback()

    async def close(self) -> None:
        """End the connection."""
        self.raw.close()


def migrate(path: Path, migrations: Path) -> None:
    """Bring a database up to date: all migrations succeed, or it is not touched.

    Raises `NewerDatabase` and `StoreError`.
    """
    scripts = sorted(migrations.glob("[0-9]*.sql"))
    with _store_errors(), closing(sqlite3.connect(path, isolation_level=None)) as connection:
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
