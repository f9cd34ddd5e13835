"""The interface of a database that is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .connection import Connection, Dialect, Row
from .group_commit import GroupCommit
from .queue import Queue


class Engine(Protocol):
    """A database that is open. Every method raises `StoreError`."""

    dialect: Dialect
    is_shared: bool
    """True where other nodes may use the same database."""

    @property
    def group(self) -> GroupCommit | None:
        """The way of whole transactions where all have one connection; None where each has one of its own."""

    @property
    def queue(self) -> Queue | None:
        """The jobs that have not ended, in memory; None where others may change them."""

    async def acquire(self) -> Connection:
        """Wait for a connection to write through, which nobody else uses until it is released."""

    async def release(self, connection: Connection) -> None:
        """Give back a connection that was acquired, its transaction ended."""

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Return the rows that a question is answered with by what is committed."""

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds, for times that are told. It may jump."""

    async def monotonic_ms(self) -> int:
        """Return the time in milliseconds by which leases and pauses end."""

    async def notify(self, notes: Sequence[str]) -> None:
        """Tell all nodes that listen, this one included; each note is shorter than 8,000 bytes."""

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        """Hear what nodes are told, until cancelled. Raises `StoreError` when the connection is lost."""

    async def shrink(self) -> None:
        """Give the disk back what was deleted, a little at a time, so that nobody waits long for that."""

    async def close(self) -> None:
        """End the connections. Without it the process would hang at its exit."""
