"""PostgreSQL: a pool of connections, each with a transaction of its own; any number of nodes may share it.

Nothing is kept in a session but what `listen` hears, which has a connection beside the pool, and bounds of silence,
which may be lost: a pooler that gives each transaction another session may stand between. Such a one needs
`statement_cache_size=0` in the URL.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from .connection import CommitUnknown, Connection, Dialect, Row, StoreError, newer_database, scripts, storable

KIND = "postgresql"
"""The word in the names of its migrations."""
CHANNEL = "faceswap"
"""The channel of the notes between nodes."""
MIGRATION_LOCK = 0x_FACE_0000
"""The number of the advisory lock under which the schema is changed."""
POOL_SIZE = 10
"""Connections of a node beside the one that listens."""
CACHED_STATEMENTS = 256
"""Prepared statements that each connection keeps: more than the store has."""

CONNECT_TIMEOUT_S = 4.0
ACQUIRE_TIMEOUT_S = 6.0
"""The longest that is waited for a free connection, or a new one."""
STATEMENT_TIMEOUT_S = 4.0
"""The longest that a statement may take, or the time between two of a transaction, before the server ends it.

A node that freezes within a transaction keeps others from its rows for no longer.
"""
TRANSACTION_TIMEOUT_S = 30.0
"""The longest that a transaction may take.

It ends that of a node that froze between two messages of one statement: the server then waits for the second, and no
other bound of its own holds there. PostgreSQL before 17 knows no such bound.
"""
COMMAND_TIMEOUT_S = 6.0
"""The silence of the server after which a connection counts as lost: the server would have answered by itself."""
ROLLBACK_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 2.0
"""The time for the connections to end when the service stops, whose whole stop is bounded."""
LISTEN_CHECK_S = 3.0
"""Between two looks at the connection that listens: a network that is cut says nothing."""
LONG_TIMEOUT_S = 600.0
"""The longest that a statement of a migration may take, and in a transaction that copies a whole database a statement,
the time between two, and the server's silence."""
LOCK_TIMEOUT_S = 30.0
"""The longest that a migration waits for a table, and has others wait behind it."""

# Not READ WRITE: a standby would refuse that as a thing that cannot pass.
_BEGIN, _BEGIN_LONG = [
    "BEGIN ISOLATION LEVEL READ COMMITTED;"
    f" SET LOCAL statement_timeout = {int(bound_s * 1000)};"
    f" SET LOCAL idle_in_transaction_session_timeout = {int(bound_s * 1000)}"
    for bound_s in (STATEMENT_TIMEOUT_S, LONG_TIMEOUT_S)
]
_BOUND_TRANSACTION = f"; SET LOCAL transaction_timeout = {int(TRANSACTION_TIMEOUT_S * 1000)}"
_FIRST_WITH_BOUND_TRANSACTIONS = 17
"""The major version of the server that has `transaction_timeout`."""
_NOTICE_SILENCE = (
    "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;"
    " SET tcp_user_timeout = 10000"
)
"""Has the server end the session, and so its transaction, of a node that a cut network took away: within 11 s.

While a server writes an answer or waits for the rest of a statement, no other bound of its own holds.
"""
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_TRANSIENT_CLASSES = ("08", "40", "53", "57")
"""Connection exception, transaction rollback, insufficient resources, operator intervention."""
_TRANSIENT = frozenset({"25006", "25P03", "25P04", "55P03", "58000", "58030"})
"""Read-only (a standby), idle in a transaction, transaction timeout, lock not available, system and I/O error."""
_NOT_TRANSIENT = frozenset({"57P04"})
"""Database dropped."""
_DISK_FULL = "53100"

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Everything that a connection raises, a time that is up included."""
WRONG_URL = "the database's URL cannot be read; it is postgresql://user:password@host:port/database"


def store_error(error: BaseException) -> StoreError:
    """Return what an error of the driver, the network or the server means to the service."""
    message = str(error).partition("\n")[0] or type(error).__name__
    match error:
        case asyncpg.InvalidCachedStatementError():
            return StoreError(message, transient=True)
        case asyncpg.PostgresError():
            code = error.sqlstate or ""
            transient = (code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT) and code not in _NOT_TRANSIENT
            return StoreError(message, transient=transient, disk_full=code == _DISK_FULL)
        case TimeoutError():
            return StoreError(f"PostgreSQL did not answer within {COMMAND_TIMEOUT_S:g} s", transient=True)
        case ValueError() | ssl.SSLCertVerificationError() | asyncpg.UnsupportedClientFeatureError():
            return StoreError(message, transient=False)
        case asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return StoreError(f"the connection to PostgreSQL was lost: {message}", transient=True)
        case _:
            return StoreError(message, transient=True)


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise errors as what they mean to the service."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise store_error(error) from error


@lru_cache(1024)
def numbered(sql: str) -> str:
    """Return a statement with `$1`, `$2`, … in place of each `?`, and PostgreSQL's name of `group_concat`."""
    first, *rest = sql.replace("group_concat(", "string_agg(").split("?")
    return first + "".join(f"${number}{text}" for number, text in zip(count(1), rest, strict=False))


class PostgresConnection:
    """A connection of the pool, while somebody has it."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._now_ms: int | None = None
        self._timeout_s: float | None = None
        """The silence of the server after which a statement is lost; None is the driver's, `COMMAND_TIMEOUT_S`."""

    @property
    def is_lost(self) -> bool:
        """True when nothing can be asked through it any more: it has left the pool by itself then."""
        try:
            return bool(self.raw.is_closed())
        except asyncpg.InterfaceError:
            return True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors as what they mean to the service. A connection that its driver is at a loss with is dropped."""
        try:
            with store_errors():
                yield
        except StoreError as error:
            if isinstance(error.__cause__, asyncpg.InterfaceError | asyncpg.InternalClientError):
                self._drop()
            raise

    def _drop(self) -> None:
        if not self.is_lost:
            self.raw.terminate()

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Execute a statement; returns its rows."""
        with self._errors():
            rows: Sequence[Row] = await self.raw.fetch(
                numbered(sql), *map(storable, parameters), timeout=self._timeout_s
            )
            return rows

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""
        with self._errors():
            await self.raw.executemany(numbered(sql), [[*map(storable, row)] for row in rows], timeout=self._timeout_s)

    async def begin(self, *, is_long: bool = False) -> None:
        """Begin a transaction that may write; it sees what others commit meanwhile."""
        bounded = self.raw.get_server_version().major >= _FIRST_WITH_BOUND_TRANSACTIONS
        with self._errors():
            if is_long:
                self._timeout_s = LONG_TIMEOUT_S
                await self.raw.execute(_BEGIN_LONG)
            else:
                await self.raw.execute(_BEGIN + _BOUND_TRANSACTION if bounded else _BEGIN)

    async def commit(self) -> None:
        """End the transaction; what it wrote is on the disk. Raises `CommitUnknown` where that cannot be told."""
        try:
            with self._errors():
                ended = await self.raw.execute("COMMIT")
        except StoreError as error:
            if error.transient:
                raise CommitUnknown(str(error)) from error
            raise
        if ended != "COMMIT":
            raise StoreError("the transaction was rolled back", transient=True)

    async def roll_back(self) -> None:
        """End the transaction, if there is one. A connection that does not answer is dropped, which ends it too."""
        try:
            async with asyncio.timeout(ROLLBACK_TIMEOUT_S):
                await self.raw.execute("ROLLBACK")
        except DRIVER_ERRORS:
            self._drop()

    async def now_ms(self) -> int:
        """Return the server's time in Unix milliseconds, once for the whole transaction."""
        if self._now_ms is None:
            self._now_ms = int((await self.fetch(f"SELECT {_NOW}"))[0][0])
        return self._now_ms

    async def monotonic_ms(self) -> int:
        """Return the server's time, which is the same for all nodes."""
        return await self.now_ms()


class PostgreSQL:
    """A database of PostgreSQL, which several nodes may share."""

    dialect = Dialect(
        locks_rows=True,
        has_statistics=True,
        now_ms=_NOW,
        share_lock=" FOR SHARE",
        claim_locks=(" FOR UPDATE OF job SKIP LOCKED", " FOR UPDATE OF job"),
        skip_locked=" FOR UPDATE SKIP LOCKED",
        values="SELECT json_array_elements_text(?::json)",
        # The transaction that wrote the row, and its place: two of one transaction have two places.
        row_version="xmin::text || ' ' || ctid::text",
        pairs="json_each_text(?::json)",
        restart_numbers=(
            "SELECT setval(pg_get_serial_sequence('audit', 'number'), coalesce(max(number), 0) + 1, false) FROM audit"
        ),
    )
    is_shared = True
    group = None
    queue = None

    def __init__(self, pool: Any, connect: Callable[[], Any]) -> None:
        self._pool = pool
        self._connect = connect

    @classmethod
    async def open(cls, url: str, migrations: Path) -> Self:
        """Open a database, brought up to date by the `migrations` folder. Raises `NewerDatabase`."""
        options = connect_options(url)
        connect = partial(_connect, options)
        await migrate(connect, migrations)
        with store_errors():
            pool = await asyncpg.create_pool(
                **options, min_size=0, max_size=POOL_SIZE, max_queries=2**31, init=_prepare, reset=_keep
            )
        return cls(pool, connect)

    async def acquire(self) -> Connection:
        """Wait for a connection that nobody uses."""
        with store_errors():
            return PostgresConnection(await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S))

    async def release(self, connection: Connection) -> None:
        """Give back a connection. When it was lost, the others that were open then are not trusted either."""
        assert isinstance(connection, PostgresConnection)
        await asyncio.shield(self._give_back(connection))

    async def _give_back(self, connection: PostgresConnection) -> None:
        if connection.is_lost:
            await self._pool.expire_connections()
        with suppress(*DRIVER_ERRORS):
            await self._pool.release(connection.raw, timeout=ROLLBACK_TIMEOUT_S)

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Row]:
        """Return the rows that a question is answered with by what is committed."""
        connection = await self.acquire()
        try:
            return await connection.fetch(sql, parameters)
        finally:
            await self.release(connection)

    async def now_ms(self) -> int:
        """Return the server's time in Unix milliseconds."""
        return int((await self.fetch(f"SELECT {_NOW}"))[0][0])

    async def monotonic_ms(self) -> int:
        """Return the server's time, which is the same for all nodes."""
        return await self.now_ms()

    async def notify(self, notes: Sequence[str]) -> None:
        """Tell all nodes that listen, this one included; each note is shorter than 8,000 bytes."""
        await self.fetch("SELECT pg_notify(?, note) FROM unnest(?::text[]) AS note", [CHANNEL, list(notes)])

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        """Hear what nodes are told, until cancelled. Raises `StoreError` when the connection is lost."""
        connection = await self._connect()
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            with store_errors():
                await connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, note: on_note(note))
                on_listening()
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LISTEN_CHECK_S):
                            await lost.wait()
                    await connection.execute("SELECT 1")
        finally:
            connection.terminate()

    async def shrink(self) -> None:
        """Do nothing: the server has its own way of that, autovacuum."""

    async def close(self) -> None:
        """End the connections, those in use at once if they are not given back soon."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _prepare(connection: Any) -> None:
    """Have the server notice a silent network on a new connection of the pool."""
    await connection.execute(_NOTICE_SILENCE)


async def _keep(_connection: Any) -> None:
    """Reset nothing of a connection that is given back: nothing else is set but within a transaction."""


def connect_options(url: str) -> Mapping[str, Any]:
    """Return the driver's options for a URL. `statement_cache_size` in it is the driver's, all else the server's."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        cached = int(query.pop("statement_cache_size", CACHED_STATEMENTS))
    except ValueError:
        raise StoreError(WRONG_URL, transient=False) from None
    return {
        "dsn": urlunsplit(parts._replace(query=urlencode(query))),
        "statement_cache_size": cached,
        "timeout": CONNECT_TIMEOUT_S,
        "command_timeout": COMMAND_TIMEOUT_S,
    }


async def _connect(options: Mapping[str, Any]) -> Any:
    try:
        return await asyncpg.connect(**options)
    except ValueError:  # its text may hold a part of the password
        raise StoreError(WRONG_URL, transient=False) from None
    except DRIVER_ERRORS as error:
        raise store_error(error) from error


async def migrate(connect: Callable[[], Any], migrations: Path) -> None:
    """Bring a database up to date: all migrations succeed, or it is not touched. Nodes do so one after another.

    Migrations only add, so that nodes of two neighbouring versions run side by side during an upgrade: a database that
    is one version newer is good for this program too. Raises `NewerDatabase` for one that is more.
    """
    known = await asyncio.to_thread(scripts, migrations, KIND)
    newest = max(known)
    connection = await connect()
    execute = partial(connection.execute, timeout=LONG_TIMEOUT_S)
    try:
        with store_errors():
            await execute(f"BEGIN; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            await execute(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
            if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
                await execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
            if version > newest + 1:
                raise newer_database(version, newest)
            if version < newest:
                await execute("".join(script for number, script in known.items() if number > version))
                await execute(f"DELETE FROM schema_version; INSERT INTO schema_version (version) VALUES ({newest})")
            await execute("COMMIT")
        with suppress(*DRIVER_ERRORS):  # it has succeeded, however the database takes the leave
            await connection.close(timeout=ROLLBACK_TIMEOUT_S)
    finally:
        connection.terminate()


async def find_version(url: str, migrations: Path) -> tuple[int | None, int]:
    """Return the version of a database, None where it is empty yet, and this program's. Nothing is changed.

    Raises `NewerDatabase`, and `StoreError` for one that cannot be reached or written to.
    """
    newest = max(await asyncio.to_thread(scripts, migrations, KIND))
    connection = await _connect(connect_options(url))
    try:
        with store_errors():
            if await connection.fetchval("SHOW transaction_read_only") == "on":
                raise StoreError("it is read-only: a standby, perhaps", transient=False)
            if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
                return None, newest
            version = await connection.fetchval("SELECT max(version) FROM schema_version")
    finally:
        connection.terminate()
    if version is not None and version > newest + 1:
        raise newer_database(version, newest)
    return version, newest
