"""A file that grows from a stream: written, hashed and synced in threads, beside the receiving."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import aiofiles.os
from aiofiles import threadpool
from aiofiles.threadpool.binary import AsyncFileIO

from ..durable import sync

R = TypeVar("R")

PIECE_BYTES = 1024 * 1024
"""Size of the pieces that are written in a thread. For smaller ones the hand-over costs more than the write."""
SYNC_BYTES = 16 * 1024 * 1024
"""Unsynced bytes at which a sync begins while more are received, so that few are left to sync at the end."""
_TRANSFERS = ThreadPoolExecutor(16, "transfer")
"""Threads for pieces and syncs only, so that no quick call waits for a thread behind a slow disk."""
_HASHES = ThreadPoolExecutor(os.cpu_count(), "hash")
"""Threads for hashing only. They wait for nothing, so that no transfer that waits for one of them waits for another."""


class _HashedFile(io.FileIO):
    """A new file, readable by its owner only, that hashes the bytes written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))
        self.path = path
        """Its name now."""
        self.sha256 = sha256()

    def write(self, data: Any, /) -> int:
        """Write all of `data`, and hash it: a whole piece in another thread meanwhile."""
        if len(data) < PIECE_BYTES:
            self.sha256.update(data)
            return self._write_all(data)
        hashing = _HASHES.submit(self.sha256.update, data)
        try:
            return self._write_all(data)
        finally:
            hashing.result()  # after which nobody looks at the bytes any more

    def _write_all(self, data: Any) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) or 0 :]
        return len(data)

    def sync(self) -> None:
        """Wait until all bytes written so far are on the disk."""
        os.fdatasync(self.fileno())

    def finish(self, rest: bytes | bytearray, path: Path, *, durable: bool, durable_name: bool) -> None:
        """Write the last bytes and give the file its name; file and name are on the disk then, each if it is `durable`.

        All of it is one call of a thread: for a small file, handing over takes longer than the rest.
        """
        self.write(rest)
        if durable:
            self.sync()
        self.close()
        self.path = self.path.replace(path)
        if durable_name:
            sync(path.parent)


class FileWriter:
    """A file written from a stream, hashed and synced while it grows.

    One thread writes a piece while another hashes it and the next one is received; a third syncs the bytes written
    before. At most one piece and one sync are under way. A later call raises the error of either. The file is closed
    only when no thread uses it any more, even after a cancellation: the number of a closed descriptor may belong to
    another file.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Begin a file at `path`, its name until it is finished. One that is not `durable` is never synced."""
        self.size = 0
        """Bytes received so far."""
        self._path = path
        self._durable = durable
        self._gathered = bytearray()
        self._unsynced = 0
        self._opening: asyncio.Future[_HashedFile] | None = None
        self._writing: asyncio.Future[int] | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of a finished file, or of what was flushed, hexadecimal."""
        assert self._opening is not None
        return self._opening.result().sha256.hexdigest()

    async def write(self, data: bytes | memoryview) -> None:
        """Append bytes; the first call creates the file. Raises `OSError`, for earlier bytes too."""
        await self._opened()
        self.size += len(data)
        self._gathered += data
        if len(self._gathered) >= PIECE_BYTES:
            await self._write_gathered()

    async def flush(self) -> None:
        """Wait until all bytes received so far are on the disk. Raises `OSError`."""
        raw = await self._opened()
        await self._write_gathered()
        await self._written()
        if self._syncing is not None:
            await asyncio.shield(self._syncing)
        self._unsynced = 0
        self._syncing = _in_transfers(raw.sync)
        await asyncio.shield(self._syncing)

    async def finish(self, name: str, *, durable_name: bool = False) -> None:
        """Sync all bytes, close the file and rename it to `name`; `durable_name` is synced too. Raises `OSError`."""
        raw = await self._opened()
        await self._written()
        if self._syncing is not None:
            await asyncio.shield(self._syncing)
        rest, self._gathered = self._gathered, bytearray()
        path = self._path.with_name(name)
        self._syncing = _in_transfers(partial(raw.finish, rest, path, durable=self._durable, durable_name=durable_name))
        await asyncio.shield(self._syncing)

    async def close(self) -> None:
        """Close the file once no thread uses it. A second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def discard(self) -> None:
        """Close the file and delete it, also one that got its name meanwhile; never another of that name."""
        await self.close()
        if self._opening is not None and self._opening.exception() is None:
            with suppress(OSError):
                await aiofiles.os.unlink(self._opening.result().path)

    async def _opened(self) -> _HashedFile:
        if self._opening is None:
            self._opening = _in_transfers(partial(_HashedFile, self._path))
        return await asyncio.shield(self._opening)

    async def _write_gathered(self) -> None:
        """Begin to write the gathered piece once the one before is written."""
        await self._written()
        file: AsyncFileIO = threadpool.wrap(await self._opened(), executor=_TRANSFERS)
        piece, self._gathered = self._gathered, bytearray()
        self._unsynced += len(piece)
        self._writing = asyncio.ensure_future(file.write(piece))

    async def _written(self) -> None:
        """Wait until the last piece is written; begin a sync, after the one before, when `SYNC_BYTES` are unsynced."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._durable and self._unsynced >= SYNC_BYTES:
            if self._syncing is not None:
                await asyncio.shield(self._syncing)
            self._unsynced = 0
            self._syncing = _in_transfers((await self._opened()).sync)

    async def _close(self) -> None:
        under_way = [work for work in (self._opening, self._writing, self._syncing) if work is not None]
        await asyncio.gather(*under_way, return_exceptions=True)
        if self._opening is not None and self._opening.exception() is None and not self._opening.result().closed:
            await aiofiles.os.wrap(self._opening.result().close)()


def _in_transfers(work: Callable[[], R]) -> asyncio.Future[R]:
    return asyncio.get_running_loop().run_in_executor(_TRANSFERS, work)


@asynccontextmanager
async def new_file(destination: Path, *, durable: bool = True) -> AsyncIterator[FileWriter]:
    """Write a file that gets its name at the end of the block, complete; an exception deletes it.

    It is synced before, unless it is not to be `durable`.
    """
    writer = FileWriter(destination.with_name(f".{destination.name}.part"), durable=durable)
    try:
        yield writer
        await writer.finish(destination.name, durable_name=durable)
    except BaseException:
        await asyncio.shield(writer.discard())
        raise
