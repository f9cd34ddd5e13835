"""A job's input folder while it fills: files counted, hashed and synced; on failure nothing is left of it.

Beside the folder lies a mark until its job is committed: after a crash it tells an upload that was never promised
anything from the inputs of a job that a lost database knew.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadRequest, TooLarge, Unavailable
from ..files import upload_mark

SYNC_BYTES = 64 * 1024 * 1024
"""After so many bytes a file goes to the disk, and the room left there is looked at again."""
WRITE_BYTES = 256 * 1024
"""Small pieces are gathered to writes of this size. Writing that much takes less time than handing it to a thread."""
HEAD_BYTES = 64
RETRY_AFTER_S = 60
_EXTENSIONS = {
    "video": (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif"),
    "image": (".png", ".jpg", ".webp", ".gif", ".bmp"),
}
"""What a file may be called; the first is for bytes that nobody knows."""
_SIGNATURES = (
    (4, b"ftypqt  ", ".mov"),
    (4, b"ftyp", ".mp4"),
    (4, b"moov", ".mov"),
    (4, b"mdat", ".mov"),
    (4, b"wide", ".mov"),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"),
    (8, b"WEBP", ".webp"),
    (0, b"GIF8", ".gif"),
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"BM", ".bmp"),
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the folder, synced to disk. `size` in bytes."""

    name: str
    size: int
    sha256: str


def extension(kind: str, head: bytes) -> str:
    """The extension for a `video` or `image` that starts with `head`. A hint for programs that go by names."""
    found = next((name for offset, magic, name in _SIGNATURES if head.startswith(magic, offset)), "")
    if found == ".mkv" and b"webm" in head:
        found = ".webm"
    return found if found in _EXTENSIONS[kind] else _EXTENSIONS[kind][0]


def check_size(kind: str, size: int, max_bytes: int) -> None:
    """Raise `TooLarge` where a file has more bytes than are taken."""
    if size > max_bytes:
        raise TooLarge(f"'{kind}' is larger than {max_bytes:,} bytes, the most that is taken.")


class Room:
    """The room on the disk, less what the uploads under way have yet to bring."""

    def __init__(self, min_free_bytes: int) -> None:
        self._min_free_bytes = min_free_bytes
        self._expected: dict[InputFolder, int] = {}

    def expect(self, folder: InputFolder, size: int) -> None:
        """Note that an upload will bring `size` more bytes at most. Raises `Unavailable` where they have no room."""
        self._expected[folder] = size
        self.check(folder)

    def check(self, folder: InputFolder) -> None:
        """Raise `Unavailable` where all that is still to come would leave too little room."""
        if shutil.disk_usage(folder.path).free - sum(self._expected.values()) < self._min_free_bytes:
            raise Unavailable("The server has too little disk space left.", code="disk_low", retry_after=RETRY_AFTER_S)

    def arrived(self, folder: InputFolder, size: int) -> None:
        """Note that `size` bytes more have come."""
        self._expected[folder] = max(0, self._expected[folder] - size)

    def forget(self, folder: InputFolder) -> None:
        """Expect nothing more of an upload."""
        self._expected.pop(folder, None)


class InputFolder:
    """The folder of one job's inputs, while `new_input_folder` holds it open."""

    def __init__(self, path: Path, files: ExitStack, room: Room) -> None:
        self.path = path
        self.files = files
        self._room = room

    def expect(self, size: int) -> None:
        """Reserve room for so many bytes that are still to come. Raises `Unavailable`."""
        self._room.expect(self, size)

    def check_room(self) -> None:
        """Raise `Unavailable` where the disk has too little room by now."""
        self._room.check(self)

    def arrived(self, size: int) -> None:
        """Give back the reservation of bytes that have come."""
        self._room.arrived(self, size)


@asynccontextmanager
async def new_input_folder(path: Path, room: Room) -> AsyncIterator[InputFolder]:
    """Create the folder and its mark, for their owner only; at the end sync it, after any exception remove both."""
    _create(path)
    try:
        with ExitStack() as files:
            folder = InputFolder(path, files, room)
            try:
                yield folder
            finally:
                room.forget(folder)
        await asyncio.to_thread(_sync, path, path.parent)
    except BaseException:
        # Shielded: a second cancellation ends this wait, not the removal.
        await asyncio.shield(asyncio.to_thread(erase_upload, path))
        raise


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    upload_mark(path).touch(mode=0o600)
    path.mkdir(mode=0o700)


def erase_upload(path: Path) -> None:
    """Remove an input folder that no job was made of, its mark last."""
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
    upload_mark(path).unlink(missing_ok=True)


def accept_upload(path: Path) -> None:
    """Remove the mark of an input folder whose job was committed."""
    with suppress(OSError):  # it goes at the next start
        upload_mark(path).unlink()


class FileSink:
    """One input (`kind` is `video` or `image`) on its way into the folder, of at most `max_bytes` bytes."""

    def __init__(self, folder: InputFolder, kind: str, max_bytes: int) -> None:
        self.kind = kind
        self._folder = folder
        self._max_bytes = max_bytes
        self._path = folder.path / f"{kind}.part"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = folder.files.enter_context(os.fdopen(descriptor, "wb", buffering=WRITE_BYTES))
        self._hash = hashlib.sha256()
        self._head = b""
        self._size = 0
        self._synced = 0

    async def write(self, piece: bytes) -> None:
        """Add bytes. Raises `TooLarge`, `Unavailable`, or `OSError` of the disk."""
        self._size += len(piece)
        check_size(self.kind, self._size, self._max_bytes)
        self._hash.update(piece)
        self._file.write(piece)
        self._folder.arrived(len(piece))
        if len(self._head) < HEAD_BYTES:
            self._head += piece[:HEAD_BYTES]
        if self._size - self._synced >= SYNC_BYTES:
            # Few unwritten pages at any time: a write into a full page cache would hold up the event loop.
            self._folder.check_room()
            await self._sync()

    async def finish(self) -> StoredFile:
        """Sync the file and give it its name; raises `BadRequest` where it is empty."""
        if not self._size:
            raise BadRequest(f"'{self.kind}' is empty.", code=f"empty_{self.kind}")
        await self._sync()
        self._file.close()
        name = self.kind + extension(self.kind, self._head)
        self._path.rename(self._folder.path / name)
        return StoredFile(name, self._size, self._hash.hexdigest())

    async def _sync(self) -> None:
        self._file.flush()
        await asyncio.to_thread(_sync, self._path)
        self._synced = self._size


def _sync(*paths: Path) -> None:
    """Sync files or folders to disk; by path, so that a thread outliving its cancelled wait has its own descriptor."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
