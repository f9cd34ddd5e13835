"""The input folder of a job while files are received: bounded, hashed and synced. A failure deletes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import BadRequest, Problem, TooLarge, Unavailable
from ..files import Files, FileWriter
from ..metrics import RECEIVED_BYTES

ROOM_CHECK_BYTES = 64 * 1024 * 1024
"""Bytes of a file after which the free space on the disk is checked again."""
HEAD_BYTES = 64
"""First bytes of a file that are searched for the signature of its format."""
RETRY_AFTER_S = 60
"""Pause that a client is asked for when the disk has too little free space."""
_EXTENSIONS = {
    "video": (*(".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif"), *(".png", ".jpg", ".webp", ".heic", ".avif", ".bmp")),
    "image": (".png", ".jpg", ".webp", ".gif", ".bmp"),
}
"""Extensions of each kind of input; the first is for files of unknown format."""
_SIGNATURES = (
    (4, b"ftypqt  ", ".mov"),
    (4, b"ftyphei", ".heic"),
    (4, b"ftypmif1", ".heic"),
    (4, b"ftypavif", ".avif"),
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
"""Signatures of formats: offset in bytes, the bytes there, extension."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the folder, synced to the disk; `size` in bytes, `sha256` hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file that is here already.

    size    bytes, where they are known
    sha256  hexadecimal, where it is known
    read    yields its bytes
    link    gives it a second name, where that may be possible; returns whether it was
    gone    the problem to raise where it was erased meanwhile
    """

    size: int | None
    sha256: str | None
    read: Callable[[], AsyncGenerator[bytes | memoryview]]
    link: Callable[[Path], Awaitable[bool]] | None
    gone: Problem


def extension(kind: str, head: bytes) -> str:
    """Return the extension for a `video` or `image` that begins with `head`, as a hint for programs that read names."""
    found = next((name for offset, magic, name in _SIGNATURES if head.startswith(magic, offset)), "")
    if found == ".mkv" and b"webm" in head:
        found = ".webm"
    return found if found in _EXTENSIONS[kind] else _EXTENSIONS[kind][0]


def check_size(kind: str, size: int, max_bytes: int) -> None:
    """Raise `TooLarge` when a file has more than `max_bytes` bytes."""
    if size > max_bytes:
        raise TooLarge(f"'{kind}' is larger than {max_bytes:,} bytes, the most that is taken.")


class Room:
    """The free space on the disk, less the bytes that uploads under way have reserved."""

    def __init__(self, files: Files, min_free_bytes: int) -> None:
        self._files = files
        self._min_free_bytes = min_free_bytes
        self._expected: dict[object, int] = {}

    @asynccontextmanager
    async def reserved(self, size: int) -> AsyncIterator[Callable[[int], None]]:
        """Reserve room for `size` bytes; what is yielded is told of those that arrive. Raises `Unavailable`."""
        whom = object()
        await self.expect(whom, size)
        try:
            yield partial(self.arrived, whom)
        finally:
            self.forget(whom)

    async def expect(self, whom: object, size: int) -> None:
        """Reserve room for at most `size` more bytes of an upload. Raises `Unavailable` when there is too little."""
        free_bytes = await self._files.free_bytes()
        # No await from here on: of simultaneous uploads, each sees the reservations of those before it.
        self._expected.pop(whom, None)
        self._check(free_bytes - size)
        self._expected[whom] = size

    async def check(self) -> None:
        """Raise `Unavailable` when the reserved bytes would leave too little free space."""
        self._check(await self._files.free_bytes())

    def _check(self, free_bytes: int) -> None:
        if free_bytes - sum(self._expected.values()) < self._min_free_bytes:
            raise Unavailable("The server has too little disk space left.", code="disk_low", retry_after=RETRY_AFTER_S)

    def arrived(self, whom: object, size: int) -> None:
        """Release the reservation of `size` bytes that were received."""
        self._expected[whom] = max(0, self._expected[whom] - size)

    def forget(self, whom: object) -> None:
        """Release all that an upload has reserved."""
        self._expected.pop(whom, None)


class InputFolder:
    """The folder of one job's inputs, inside a `new_input_folder` block."""

    def __init__(self, files: Files, prompt_id: str, room: Room) -> None:
        self._files = files
        self._prompt_id = prompt_id
        self._room = room
        self._writers: list[FileWriter] = []

    async def expect(self, size: int) -> None:
        """Reserve room for `size` bytes to be received. Raises `Unavailable`."""
        await self._room.expect(self, size)

    async def check_room(self) -> None:
        """Raise `Unavailable` when the disk has too little free space by now."""
        await self._room.check()

    def arrived(self, size: int) -> None:
        """Release the reservation of `size` bytes that were received."""
        self._room.arrived(self, size)

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self._files.input(self._prompt_id, name)

    def new_writer(self, name: str) -> FileWriter:
        """Return a writer for a new file of this name; the folder closes it."""
        writer = self._files.new_input(self._prompt_id, name)
        self._writers.append(writer)
        return writer

    async def close(self) -> None:
        """Close the files once no thread writes to them."""
        ends = await asyncio.gather(*(writer.close() for writer in self._writers), return_exceptions=True)
        for error in ends:
            if error is not None:
                raise error


@asynccontextmanager
async def new_input_folder(files: Files, prompt_id: str, room: Room) -> AsyncIterator[InputFolder]:
    """Create the folder and its mark, for their owner only; sync them at the end, delete them after any exception."""
    creation = asyncio.ensure_future(files.begin_upload(prompt_id))
    folder = InputFolder(files, prompt_id, room)
    try:
        await asyncio.shield(creation)
        yield folder
        await folder.close()
        await files.sync_upload(prompt_id)
    except BaseException:
        # Shielded: a second cancellation ends this wait, not the deletion.
        await asyncio.shield(_discard(creation, folder, files, prompt_id))
        raise
    finally:
        room.forget(folder)


async def _discard(creation: asyncio.Future[None], folder: InputFolder, files: Files, prompt_id: str) -> None:
    """Delete an upload once no thread works on it."""
    await asyncio.wait({creation})
    with suppress(OSError):
        await folder.close()
    if creation.exception() is None:  # else the folder may be another upload's
        await files.delete_upload(prompt_id)


class FileSink:
    """One input that is being received, a `video` or `image` (`kind`) of at most `max_bytes` bytes.

    `number` counts the inputs of a kind.
    """

    def __init__(self, folder: InputFolder, kind: str, max_bytes: int, number: int = 0) -> None:
        self.kind = kind
        self._stem = f"{kind}-{number}" if number else kind
        self._folder = folder
        self._max_bytes = max_bytes
        self._writer = folder.new_writer(f"{self._stem}.part")
        self._head = b""
        self._next_check = ROOM_CHECK_BYTES

    async def write(self, piece: bytes) -> None:
        """Append bytes. Raises `TooLarge`, `Unavailable`, and `OSError` of the disk."""
        writer = self._writer
        size = writer.size + len(piece)
        check_size(self.kind, size, self._max_bytes)
        if len(self._head) < HEAD_BYTES:
            self._head += piece[:HEAD_BYTES]
        if size >= self._next_check:
            self._next_check = size + ROOM_CHECK_BYTES
            await self._folder.check_room()
        await writer.write(piece)
        self._folder.arrived(len(piece))
        RECEIVED_BYTES.inc(len(piece))

    async def take(self, kept: KeptFile) -> StoredFile:
        """Take a file that is here already: by a second name, or by a copy. Raises as `write` and `finish` do."""
        check_size(self.kind, kept.size or 0, self._max_bytes)
        try:
            if linked := await self._link(kept):
                return linked
            await self._folder.expect(self._max_bytes if kept.size is None else kept.size)
            async with aclosing(kept.read()) as pieces:
                async for piece in pieces:
                    await self.write(bytes(piece))
        except FileNotFoundError:
            raise kept.gone from None
        return await self.finish()

    async def _link(self, kept: KeptFile) -> StoredFile | None:
        if kept.link is None or kept.sha256 is None:
            return None
        async with aclosing(kept.read()) as pieces:
            head = bytes((await anext(pieces, b""))[:HEAD_BYTES])
        name = self._stem + extension(self.kind, head)
        path = self._folder.path(name)
        if not head or not await kept.link(path):
            return None
        return StoredFile(name, (await asyncio.to_thread(path.stat)).st_size, kept.sha256)

    async def finish(self) -> StoredFile:
        """Sync the file and rename it to its final name. Raises `BadRequest` when it is empty."""
        writer = self._writer
        if not writer.size:
            raise BadRequest(f"'{self.kind}' is empty.", code=f"empty_{self.kind}")
        name = self._stem + extension(self.kind, self._head)
        await writer.finish(name)
        return StoredFile(name, writer.size, writer.sha256)
