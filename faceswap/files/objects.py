"""A bucket, spoken to by `obstore`: uploads that are streamed, reads in pieces, errors as `OSError`."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from .errors import FilesRefused, FilesUnavailable

SMALLEST_PART_BYTES = 5 * 1024 * 1024
"""The smallest part of a multipart upload that S3 takes, but for the last one."""
MOST_PARTS = 10_000
"""The most parts of an upload that S3 takes."""
PARTS_AT_A_TIME = 2
"""Parts of one upload that are sent at the same time. They are what it holds in memory."""
PIECES_WAITING = 2
"""Pieces of one upload that wait for being sent."""
READ_BYTES = 2 * 1024 * 1024
"""Size of the ranges in which an object is read: each is a request of its own, short enough to be bounded."""
READS_AHEAD = 2
"""Ranges of one object that are read at the same time."""
PAGE = 1000
"""Keys in a page of a listing."""
CONNECT_S, REQUEST_S = 3.0, 30.0
"""The longest that a connection, and a request with its body, may take."""
RETRIES, RETRY_S = 3, 10.0
"""The most repetitions of a request, and the time after which no more begin."""
_STATUS = re.compile(r"status code: (\d{3})")
_REFUSALS = frozenset({400, 405, 411, 413, 501})
"""Statuses of answers that another attempt would not change."""


class StoredObject(NamedTuple):
    """An object in a listing; `size` in bytes."""

    key: str
    size: int
    modified: datetime


class Objects:
    """The objects below a prefix of a bucket. Keys are relative to it. All methods raise `OSError`."""

    def __init__(self, url: str) -> None:
        """`url` is `s3://bucket/prefix`. Raises `FilesRefused`.

        Credentials, region and endpoint are those of the environment's `AWS_…` variables.
        """
        self.url = url
        try:
            self._store = S3Store.from_url(
                url,
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=CONNECT_S),
                    "timeout": timedelta(seconds=REQUEST_S),
                },
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": timedelta(seconds=RETRY_S),
                    "backoff": {"max_backoff": timedelta(seconds=1)},
                },
            )
        except (BaseError, ValueError) as error:
            raise FilesRefused(f"{url!r} cannot be used: {_short(error)}") from error

    async def put(self, key: str, data: bytes) -> None:
        """Store a small object, in place of any other under this key."""
        with self._storing():
            await obstore.put_async(self._store, key, data, use_multipart=False)

    def upload(self, key: str, most_bytes: int, attributes: Mapping[str, str] | None = None) -> Upload:
        """Return an upload of an object of at most `most_bytes` bytes."""
        part_bytes = max(SMALLEST_PART_BYTES, -(-most_bytes // MOST_PARTS))
        return Upload(self, key, part_bytes, dict(attributes or {}))

    async def put_file(self, key: str, path: Path, attributes: Mapping[str, str] | None = None) -> None:
        """Store a file as an object: all of it or nothing."""
        file, size = await asyncio.to_thread(_open, path)
        upload = self.upload(key, size, attributes)
        try:
            while piece := await asyncio.to_thread(_read_piece, file):
                await upload.write(piece)
            await upload.finish()
        except BaseException:
            await asyncio.shield(upload.abort())
            raise
        finally:
            file.close()

    async def get(self, key: str) -> bytes:
        """Return a small object. Raises `FileNotFoundError`."""
        with self._asking():
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def find(self, key: str) -> StoredObject:
        """Return what is known of an object. Raises `FileNotFoundError`."""
        with self._asking():
            found = await obstore.head_async(self._store, key)
        return StoredObject(key, found["size"], found["last_modified"])

    async def read(self, key: str, start: int, end: int) -> AsyncGenerator[memoryview]:
        """Yield the bytes of an object from `start` to `end`, some of them read ahead."""
        ranges = ((at, min(READ_BYTES, end - at)) for at in range(start, end, READ_BYTES))
        reads: deque[asyncio.Future[obstore.Bytes]] = deque()
        try:
            while True:
                while len(reads) < READS_AHEAD and (wanted := next(ranges, None)):
                    reads.append(asyncio.ensure_future(self._read_range(key, *wanted)))
                if not reads:
                    return
                with self._asking():
                    piece = await reads[0]
                reads.popleft()
                yield memoryview(piece)
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    async def _read_range(self, key: str, start: int, length: int) -> obstore.Bytes:
        return await obstore.get_range_async(self._store, key, start=start, length=length)

    async def pages(self, prefix: str) -> AsyncIterator[list[StoredObject]]:
        """Yield the objects below a prefix, which ends with a slash, a page at a time."""
        stream = obstore.list(self._store, prefix, chunk_size=PAGE)
        with self._asking():
            async for page in stream:
                yield [StoredObject(found["path"], found["size"], found["last_modified"]) for found in page]

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, those that exist."""
        if present := list(keys):
            with self._asking(), suppress(FileNotFoundError):
                await obstore.delete_async(self._store, present)

    async def delete_all(self, prefix: str) -> None:
        """Delete all objects below a prefix, which ends with a slash."""
        async for page in self.pages(prefix):
            await self.delete(found.key for found in page)

    async def sign(self, key: str, lifetime_s: float) -> str:
        """Return a URL under which anybody can read an object for a time."""
        with self._asking():
            return await obstore.sign_async(self._store, "GET", key, timedelta(seconds=lifetime_s))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise the errors of `obstore` as `FilesUnavailable` or `FilesRefused`; an object that is missing as it is."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            raise FileNotFoundError(f"there is no such object in {self.url}") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused() from error
        except BaseError as error:
            found = _STATUS.search(str(error))
            status = int(found[1]) if found else 0
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            if status in (401, 403):
                raise self._refused() from error
            if status in _REFUSALS:
                raise FilesRefused(f"{self.url} refuses a request: {_short(error)}") from error
            raise FilesUnavailable(f"{self.url} cannot be used now: {_short(error)}") from error

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Raise errors as `_asking` does; an upload that is missing is to be begun again.

        It is missing where the answer to its end was lost, and the end was asked for again.
        """
        try:
            with self._asking():
                yield
        except FileNotFoundError as error:
            raise FilesUnavailable(f"{self.url} knows nothing of an upload by now") from error

    def _no_bucket(self) -> FilesRefused:
        return FilesRefused(f"there is no bucket for {self.url!r}")

    def _refused(self) -> FilesRefused:
        return FilesRefused(f"{self.url!r} refuses the credentials of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


class Upload:
    """An object that grows from a stream, by a multipart upload once it has the size of a part.

    It appears whole when it is finished, and not at all when it is aborted. What is sent is never cancelled: a request
    that was under way could be carried out after what came next.
    """

    def __init__(self, objects: Objects, key: str, part_bytes: int, attributes: dict[str, str]) -> None:
        self._objects = objects
        self._key = key
        self._part_bytes = part_bytes
        self._attributes = attributes
        self._first: list[bytes | bytearray] = []
        self._first_bytes = 0
        self._pieces: asyncio.Queue[bytes | bytearray | None] = asyncio.Queue(PIECES_WAITING)
        self._aborted = False
        self._sending: asyncio.Task[None] | None = None

    async def write(self, piece: bytes | bytearray) -> None:
        """Append a piece, which must not change any more; wait while enough are being sent. Raises `OSError`."""
        if self._sending is None:
            self._first.append(piece)
            self._first_bytes += len(piece)
            if self._first_bytes >= self._part_bytes:
                self._sending = asyncio.create_task(self._send_parts(), name=f"upload {self._key}")
        else:
            await self._hand_over(piece)

    async def finish(self) -> None:
        """Send what is left; the object appears. Raises `OSError`."""
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_whole(), name=f"upload {self._key}")
        else:
            await self._hand_over(None)
        await asyncio.shield(self._sending)

    async def abort(self) -> None:
        """End an upload that is not to be finished, and wait until nothing of it is under way."""
        self._aborted = True
        if self._sending is not None:
            while not self._pieces.empty():
                self._pieces.get_nowait()
            self._pieces.put_nowait(None)
            await asyncio.wait({self._sending})
            if not self._sending.cancelled():
                self._sending.exception()  # it was told, or follows from the end

    async def _hand_over(self, piece: bytes | bytearray | None) -> None:
        assert self._sending is not None
        putting = asyncio.ensure_future(self._pieces.put(piece))
        try:
            await asyncio.wait({putting, self._sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
        if self._sending.done():
            self._sending.result()

    async def _send_whole(self) -> None:
        with self._objects._storing():
            await obstore.put_async(
                self._objects._store,
                self._key,
                b"".join(self._first),
                attributes=self._attributes,
                use_multipart=False,
            )

    async def _send_parts(self) -> None:
        with self._objects._storing():
            await obstore.put_async(
                self._objects._store,
                self._key,
                self._all_pieces(),
                attributes=self._attributes,
                chunk_size=self._part_bytes,
                max_concurrency=PARTS_AT_A_TIME,
            )

    async def _all_pieces(self) -> AsyncIterator[bytes | bytearray]:
        first, self._first = self._first, []
        for piece in first:
            yield piece
        del first
        while (more := await self._pieces.get()) is not None:
            yield more
        if self._aborted:  # it makes the client abort the multipart upload
            raise FilesUnavailable("the upload was aborted")


def _open(path: Path) -> tuple[BinaryIO, int]:
    """Open a file; return it with its size in bytes."""
    file = path.open("rb")
    return file, os.fstat(file.fileno()).st_size


def _read_piece(file: BinaryIO) -> bytes:
    return file.read(READ_BYTES)


def _short(error: Exception) -> str:
    """Return the first line of an error of `obstore`, without the document of the answer."""
    return str(error).split("\n")[0].split(": <?xml")[0][:300]
