"""The interface of a database connection, whatever the kind of database, and its one exception."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

_MONOTONIC_EPOCH_MS = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000


class StoreError(Exception):
    """The database could not do what it was asked to.

    `transient`: it may be able to later, as when the disk is full, the database is locked, or away. `disk_full`: it is
    the disk that is full.
    """

    def __init__(self, message: str, *, transient: bool, disk_full: bool = False) -> None:
        super().__init__(message)
        self.transient = transient
        self.disk_full = disk_full


class NewerDatabase(Exception):
    """The database was written by a newer version of the program."""


class Row(Protocol):
    """A row of an answer: its values by their number or by their name."""

    def __getitem__(self, key: Any, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def keys(self) -> Iterable[str]:
        """Return the names of its values."""


class Connection(Protocol):
    """A connection to a database. Every method raises `StoreError`."""

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement; returns its rows."""

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""

    async def begin(self) -> None:
        """Begin a transaction that may write."""

    async def commit(self) -> None:
        """End the transaction; what it wrote is on the disk."""

    async def roll_back(self) -> None:
        """End the transaction, if there is one, as if it had not been."""

    async def close(self) -> None:
        """End the connection."""


class Driver(Protocol):
    """A kind of database. Every method raises `StoreError`."""

    async def migrate(self, path: Path, migrations: Path) -> None:
        """Bring a database up to date: all migrations succeed, or it is not touched. Raises `NewerDatabase`."""

    async def connect(self, path: Path, *, read_only: bool) -> Connection:
        """Open a connection; in one that is `read_only` nothing can be written."""


class Clock(Protocol):
    """The time, in milliseconds."""

    def now_ms(self) -> int:
        """Unix time. It may jump."""

    def monotonic_ms(self) -> int:
        """Unix time as it was when the process started, plus the time that has passed: it never jumps."""


class SystemClock:
    """The clock of this machine."""

    def now_ms(self) -> int:
        """Unix time. It may jump."""
        return now_ms()

    def monotonic_ms(self) -> int:
        """Unix time as it was when the process started, plus the time that has passed: it never jumps."""
        return _MONOTONIC_EPOCH_MS + time.monotonic_ns() // 1_000_000


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
