"""The bytes of a resumable upload as they arrive: stored again and again, so that little is lost by a cut."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from .. import durable
from ..uploads import Part
from .writer import PIECE_BYTES, FileWriter


class PartWriter(Protocol):
    """Bytes that one request adds to an upload. No other writer uses the names of its parts."""

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the bytes that were stored, hexadecimal, where it is known."""

    async def write(self, piece: bytes) -> None:
        """Append bytes. Raises `OSError`, for earlier bytes too."""

    async def store(self) -> list[Part]:
        """Wait until all bytes are stored; return the parts they make. Raises `OSError`."""

    async def close(self) -> None:
        """End; what is not stored is given up. Raises `OSError`."""


def new_part_name() -> str:
    """Return a name that no other part has."""
    return uuid.uuid4().hex


class LocalPartWriter:
    """One file that grows: one part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = new_part_name()
        self._writer: FileWriter | None = None
        self._is_stored = False

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the bytes that were stored, hexadecimal."""
        return self._writer.sha256 if self._writer is not None and self._is_stored else None

    async def write(self, piece: bytes) -> None:
        """Append bytes; the first call creates the file, and its folder where there is none."""
        if self._writer is None:
            await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            self._writer = FileWriter(self._folder / self._name)
        await self._writer.write(piece)

    async def store(self) -> list[Part]:
        """Sync all bytes, at first the names too."""
        if self._writer is None:
            return []
        await self._writer.flush()
        if not self._is_stored:
            await asyncio.to_thread(durable.sync, self._folder, self._folder.parent)
            self._is_stored = True
        return [Part(self._name, self._writer.size)]

    async def close(self) -> None:
        """Close the file; delete it if none of it was stored."""
        if self._writer is not None:
            await (self._writer.close() if self._is_stored else self._writer.discard())


async def read_file(path: Path, size: int | None = None) -> AsyncGenerator[bytes]:
    """Yield the bytes of a file, or its first `size` ones. Raises `OSError`, where it has fewer too."""
    opening = asyncio.ensure_future(asyncio.to_thread(path.open, "rb"))
    try:
        file = await asyncio.shield(opening)
        missing = await asyncio.to_thread(lambda: path.stat().st_size) if size is None else size
        while missing:
            piece = await asyncio.to_thread(file.read, min(missing, PIECE_BYTES))
            if not piece:
                raise OSError(f"{path.name} is shorter than it was")
            missing -= len(piece)
            yield piece
    finally:
        opening.add_done_callback(_close)


def _close(opening: asyncio.Future[BufferedReader]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
