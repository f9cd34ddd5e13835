"""The interface of a kind of database: its connections, its dialect of SQL, its clock, and its one exception."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_MONOTONIC_EPOCH_MS = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000
_SCRIPT = re.compile(r"(\d+)_\w+(?:\.(\w+))?\.sql")


class StoreError(Exception):
    """The database could not do what it was asked to.

    `transient`: it may be able to later, as when the disk is full, the database is locked, or away. `disk_full`: it is
    the disk that is full.
    """

    def __init__(self, message: str, *, transient: bool, disk_full: bool = False) -> None:
        super().__init__(message)
        self.transient = transient
        self.disk_full = disk_full


class CommitUnknown(StoreError):
    """The connection was lost during a commit: it cannot be told whether anything was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class NewerDatabase(Exception):
    """The database was written by a newer version of the program."""


def newer_database(version: int, newest: int) -> NewerDatabase:
    """Return the refusal of a database whose version this program does not know."""
    return NewerDatabase(f"The database is of version {version}, newer than this program's {newest}; upgrade faceswap.")


class Row(Protocol):
    """A row of an answer: its values by their number or by their name."""

    def __getitem__(self, key: Any, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def keys(self) -> Iterable[str]:
        """Return the names of its values."""


class Statements(Protocol):
    """The statements of a transaction. Every method raises `StoreError`."""

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement, its parameters marked by `?`; returns its rows."""

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds, for times that are told. It may jump."""

    async def monotonic_ms(self) -> int:
        """Return the time in milliseconds by which leases and pauses end."""


class Connection(Statements, Protocol):
    """A connection to a database. Every method raises `StoreError`."""

    async def begin(self, *, is_long: bool = False) -> None:
        """Begin a transaction that may write; one that `is_long` may take as long as a whole database needs."""

    async def commit(self) -> None:
        """End the transaction; what it wrote is on the disk. Raises `CommitUnknown` where that cannot be told."""

    async def roll_back(self) -> None:
        """End the transaction, if there is one, as if it had not been."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The pieces of SQL that are not the same in every database, as SQLite has them."""

    locks_rows: bool = False
    """Several transactions are under way at a time: rows are locked before they are changed."""
    now_ms: str = ""
    """The server's clock, Unix time in milliseconds, where rows are locked."""
    share_lock: str = ""
    """The end of a query whose rows nobody may change before the transaction ends."""
    claim_locks: tuple[str, ...] = ("",)
    """The ends of the query for the next segment, which are tried in turn: they lock its job's row."""
    skip_locked: str = ""
    """The end of a query that locks its rows, without those that another transaction has locked."""
    values: str = "SELECT value FROM json_each(?)"
    """A query for the texts of a JSON array."""
    restart_numbers: str = ""
    """A statement after which new audit lines are numbered from the last one on, where copied ones are not counted."""
    has_statistics: bool = False
    """Queries are planned by what is known of the tables, which is taken anew only a minute after many rows came."""
    row_version: str = ""
    """An expression for the version of a row, another one after each change, where other nodes may change it."""
    pairs: str = "json_each(?)"
    """The table of `key` and `value` of a JSON object of texts."""


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


def scripts(migrations: Path, kind: str) -> dict[int, str]:
    """Return the migrations of a kind of database by their numbers, in order.

    `0004_nodes.postgresql.sql` is for PostgreSQL only, in place of `0004_nodes.sql`. The first one of its own makes the
    schema of that version from nothing.
    """
    of_all: dict[int, Path] = {}
    own: dict[int, Path] = {}
    for path in sorted(migrations.iterdir()):
        if name := _SCRIPT.fullmatch(path.name):
            {None: of_all, kind: own}.get(name[2], {})[int(name[1])] = path
    found, first = {**of_all, **own}, min(own, default=0)
    return {number: found[number].read_text(encoding="utf-8") for number in sorted(found) if number >= first}


def storable(value: Any) -> Any:
    """Return a value as every kind of database can store it: PostgreSQL has no NUL in its texts."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) and "\0" in value else value
