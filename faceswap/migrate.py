"""`faceswap migrate`: the jobs of a stopped service into another database, such as from SQLite to PostgreSQL."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from .config import Settings, resource_dir
from .files import Files, copy_job, open_files
from .store import NewerDatabase, Store, StoreError, TransferRefused

SQLITE = "sqlite:"
POSTGRESQL = ("postgresql://", "postgres://")


def migrate(source: str, target: str, files_url: str | None, say: Callable[[str], None]) -> int:
    """Copy all jobs from one database to another, and their files to where a URL leads; returns the exit status.

    `say` prints a line for the user.
    """
    try:
        places = _place(source), _place(target)
        if places[0] == places[1]:
            raise ValueError("The two databases are the same.")
        if files_url and not isinstance(places[0], Path):
            raise ValueError("The files are copied from the data folder of a database sqlite:…/faceswap.db only.")
        copied = asyncio.run(_copy(*places, files_url))
    except ValueError as error:
        say(str(error))
        return 2
    except (NewerDatabase, OSError, StoreError, TransferRefused) as error:
        say(f"No job was copied. {error}")
        return 1
    say("copied and compared: " + ", ".join(f"{rows:,} {table.replace('_', ' ')}s" for table, rows in copied.items()))
    if isinstance(places[0], Path) and not files_url:
        say(f"the files of these jobs are still in {places[0].parent}: inputs, work and outputs")
    return 0


def _place(where: str) -> Path | str:
    """Return the file or the URL of a database. Raises ValueError with a sentence."""
    if where.startswith(POSTGRESQL):
        return where
    if where.startswith(SQLITE) and where != SQLITE:
        return Path(where.removeprefix(SQLITE)).expanduser().absolute()
    raise ValueError("A database is sqlite:/path/faceswap.db, or postgresql://user:password@host/database.")


async def _copy(source: Path | str, target: Path | str, files_url: str | None) -> dict[str, int]:
    """Copy files, then jobs. Raises `ConfigError` for a wrong URL of files."""
    if isinstance(source, Path) and not await asyncio.to_thread(source.is_file):
        raise FileNotFoundError(f"There is no file {source}.")
    async with AsyncExitStack() as stack:
        old, new = [await stack.enter_async_context(_opened(where)) for where in (source, target)]
        await new.check_transfer(old)
        if files_url and isinstance(source, Path):
            await _copy_files(old, Files(source.parent), files_url)
        return await new.copy_from(old, _show)


async def _copy_files(store: Store, source: Files, url: str) -> None:
    # In a folder of its own, where copies are made on the way: what is there may be erased at the start.
    with tempfile.TemporaryDirectory(prefix="migrate-", dir=source.root) as folder:
        target = open_files(Settings.load({}, data_dir=folder, files_url=url), "migrate")
        await target.start()
        try:
            number = 0
            async for job in store.all_jobs():
                await copy_job(source, target, job, await store.segments(job.prompt_id))
                number += 1
                _show("files of jobs", number)
        finally:
            await target.close()


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


def _show(what: str, number: int) -> None:
    """Show how far the copying is, on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{what}: {number:,}\x1b[K\r")
        sys.stderr.flush()
