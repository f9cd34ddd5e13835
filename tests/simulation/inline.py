"""SQLite without threads: a statement is done when it was called, and a lock of another is an error at once.

It makes the order of everything that happens in a simulation depend on its seed only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from faceswap.store.connection import Clock, SystemClock
from faceswap.store.sqlite import PRAGMAS, SQLite, SQLiteConnection, migrate, store_errors

T = TypeVar("T")


class Inline:
    """A connection of `sqlite3` with the methods of `aiosqlite`."""

    def __init__(self, path: Path) -> None:
        self.raw = sqlite3.connect(path, isolation_level=None, timeout=0)
        self.raw.row_factory = sqlite3.Row

    async def execute_fetchall(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self.raw.execute(sql, parameters).fetchall()

    async def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self.raw.executemany(sql, rows)

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return function(self.raw)

    async def commit(self) -> None:
        self.raw.commit()

    async def rollback(self) -> None:
        self.raw.rollback()

    async def close(self) -> None:
        self.raw.close()


class InlineConnection(SQLiteConnection):
    """A connection whose statements are executed by whoever calls."""

    raw: Any

    @classmethod
    async def connect(cls, path: Path, clock: Clock, *, read_only: bool) -> Self:
        with store_errors():
            inline: Any = Inline(path)
            for pragma in (*PRAGMAS, f"query_only = {read_only}"):
                inline.raw.execute(f"PRAGMA {pragma}")
        return cls(inline, clock)


async def open_inline(path: Path, migrations: Path, clock: Clock | None = None) -> SQLite:
    """Open a file, brought up to date, without a thread."""
    clock = clock or SystemClock()
    migrate(path, migrations)
    writer = await InlineConnection.connect(path, clock, read_only=False)
    return SQLite(writer, await InlineConnection.connect(path, clock, read_only=True))
