"""One transaction, the events that go out after it, and the loop that waits for a database that is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ..events import Event
from . import sqlite
from .connection import Clock, Connection, Row, StoreError
from .engine import Engine
from .sqlite import SQLite
from .transaction import Transaction

T = TypeVar("T")
P = ParamSpec("P")
D = TypeVar("D", bound="Database")

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""Between two tries of what a database that is away keeps from being done."""
RETRY_LIMIT_S = 24 * 3600.0
"""The time a database may be away before that is an error."""
TOLD_EVERY_S = 60.0
"""Between two lines in the log about a database that is away."""


class Database:
    """A database in which each method is one transaction. Reads see committed data only.

    Every method of the store raises `StoreError`.
    """

    def __init__(self, engine: Engine, publish: Callable[[Event], None]) -> None:
        self._engine = engine
        self._dialect = engine.dialect
        self._publish = publish

    @classmethod
    async def open(
        cls, where: Path | str, migrations: Path, publish: Callable[[Event], None], *, clock: Clock | None = None
    ) -> Self:
        """Open a file of SQLite, or the database at a `postgresql://` URL, whose clock is the server's.

        It is brought up to date by the `migrations` folder. Raises `NewerDatabase`, `StoreError`.
        """
        if isinstance(where, Path):
            return cls(await SQLite.open(where, migrations, clock), publish)
        return cls(await open_postgres(where, migrations), publish)

    @property
    def is_shared(self) -> bool:
        """True where other nodes may use the same database."""
        return self._engine.is_shared

    async def close(self) -> None:
        """Close the connections. Without it the process would hang at its exit."""
        await self._engine.close()

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds, by the clock that the times in the database are of."""
        return await self._engine.now_ms()

    async def notify(self, notes: Sequence[str]) -> None:
        """Tell all nodes that listen, this one included; each note is shorter than 8,000 bytes."""
        await self._engine.notify(notes)

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        """Hear what nodes are told, until cancelled; `on_listening` is called once nothing is missed any more.

        Raises `StoreError` when the connection is lost.
        """
        await self._engine.listen(on_note, on_listening)

    async def _run(self, body: Callable[[Transaction], Coroutine[Any, Any, T]]) -> T:
        """Carry out the body of a transaction; the events that were added to it are published after the commit."""
        group = self._engine.group
        if group is None:
            async with self._transaction() as transaction:
                return await body(transaction)

        async def begun() -> tuple[T, Transaction]:
            transaction = Transaction(group.statements, self._dialect)
            return await body(transaction), transaction

        result, _ = await group.run(begun, lambda ended: self._tell(ended[1]))
        return result

    def _tell(self, transaction: Transaction) -> None:
        """Tell what was committed."""
        for event in transaction.events:
            self._publish(event)
        for line, fields in transaction.log_lines:
            log.info("%s", line, extra={"fields": fields})

    @asynccontextmanager
    async def _transaction(self, *, is_long: bool = False) -> AsyncIterator[Transaction]:
        """Begin a transaction that waits for more than its statements, and end it.

        Its end runs to its end, and only then lets the next one in, even when who waits for it is cancelled.
        """
        connection = await self._engine.acquire()
        try:
            await connection.begin(is_long=is_long)
            transaction = Transaction(connection, self._dialect)
            yield transaction
        except BaseException:
            await asyncio.shield(self._roll_back(connection))
            raise
        await asyncio.shield(self._commit(connection, transaction))

    async def _roll_back(self, connection: Connection) -> None:
        try:
            await connection.roll_back()
        finally:
            await self._engine.release(connection)

    async def _commit(self, connection: Connection, transaction: Transaction) -> None:
        try:
            await connection.commit()
            self._tell(transaction)
        except StoreError:
            await connection.roll_back()
            raise
        finally:
            await self._engine.release(connection)

    async def _read(self, sql: str, *parameters: Any) -> Sequence[Row]:
        """Return the rows that a question is answered with by what is committed."""
        return await self._engine.fetch(sql, parameters)


def transaction(
    method: Callable[Concatenate[D, Transaction, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[D, P], Coroutine[Any, Any, T]]:
    """Make a method one transaction, which it is given: all of it is committed when it returns, nothing if it raises.

    It may wait for its own statements only, since they are all executed in one call to the database's thread where
    there is one.
    """

    @wraps(method)
    async def in_transaction(self: D, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(lambda tx: method(self, tx, *args, **kwargs))

    return in_transaction


async def find_version(where: Path | str, migrations: Path) -> tuple[int | None, int]:
    """Return the version of a database, None where there is none yet, and this program's. Nothing is changed.

    Raises `NewerDatabase`, `StoreError`.
    """
    if isinstance(where, Path):
        return await asyncio.to_thread(sqlite.find_version, where, migrations)
    with _needs_driver():
        from . import postgres
    return await postgres.find_version(where, migrations)


async def open_postgres(url: str, migrations: Path) -> Engine:
    """Open the database at a `postgresql://` URL. Raises `NewerDatabase`, `StoreError`."""
    with _needs_driver():
        from .postgres import PostgreSQL
    return await PostgreSQL.open(url, migrations)


@contextmanager
def _needs_driver() -> Iterator[None]:
    """Say what is missing where an import fails: the driver is not required without PostgreSQL."""
    try:
        yield
    except ImportError as error:
        message = "PostgreSQL needs packages that are not installed: pip install 'faceswap[cluster]'"
        raise StoreError(message, transient=False) from error


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
