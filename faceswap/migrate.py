"""`faceswap migrate`: the jobs of a stopped service into another database, such as from SQLite to PostgreSQL."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from .config import resource_dir
from .files import Files
from .store import NewerDatabase, Store, StoreError, TransferRefused

SQLITE = "sqlite:"
POSTGRESQL = ("postgresql://", "postgres://")


def migrate(source: str, target: str, say: Callable[[str], None]) -> int:
    """Copy all jobs from one database to another; returns the exit status. `say` prints a line for the user."""
    try:
        places = [_place(where) for where in (source, target)]
    except ValueError as error:
        say(str(error))
        return 2
    if places[0] == places[1]:
        say("The two databases are the same.")
        return 2
    if isinstance(places[0], Path) and not places[0].is_file():
        say(f"There is no file {places[0]}.")
        return 1
    try:
        copied = asyncio.run(_copy(places[0], places[1]))
    except (NewerDatabase, OSError, StoreError, TransferRefused) as error:
        say(f"Nothing was copied. {error}")
        return 1
    say(", ".join(f"{rows:,} {table.replace('_', ' ')}s" for table, rows in copied.items()) + " copied and compared")
    if isinstance(places[0], Path):
        say(f"the files of these jobs are still in {places[0].parent}: inputs, work, outputs")
    return 0


def _place(where: str) -> Path | str:
    """Return the file or the URL of a database. Raises ValueError with a sentence."""
    if where.startswith(POSTGRESQL):
        return where
    if where.startswith(SQLITE) and where != SQLITE:
        return Path(where.removeprefix(SQLITE)).expanduser().absolute()
    raise ValueError("A database is sqlite:/path/faceswap.db, or postgresql://user:password@host/database.")


async def _copy(source: Path | str, target: Path | str) -> dict[str, int]:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(_opened(where)) for where in (source, target)]
        return await stores[1].copy_from(stores[0], _show)


@asynccontextmanager
async def _opened(where: Path | str) -> AsyncIterator[Store]:
    """Open a database that no running service uses, as far as its data folder tells."""
    async with AsyncExitStack() as stack:
        if isinstance(where, Path):
            lock = stack.enter_context(Files(where.parent).lock.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(f"A running faceswap uses {where.parent}; stop it first.") from None
        store = await Store.open(where, resource_dir("migrations"), lambda event: None)
        stack.push_async_callback(store.close)
        yield store


def _show(table: str, rows: int) -> None:
    """Show how far the copying is, on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{table}: {rows:,}\x1b[K\r")
        sys.stderr.flush()
