"""Resumable uploads: created, added to by one request at a time, kept as they arrive, erased."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web

from ..clock import monotonic
from ..config import Settings
from ..errors import Conflict, Locked, Unavailable
from ..files import Files
from ..jobs import new_prompt_id
from ..metrics import RECEIVED_BYTES
from ..store import LOCAL_HOLDER, Lease, Store, upload_lease
from ..uploads import Upload
from .body import BoundedBytes, bytes_to_the_cut, send_continue
from .files import ROOM_CHECK_BYTES, Room, check_size

STORE_BYTES = 16 * 1024 * 1024
"""Bytes of a request that are stored together, while more of them come."""
STORE_S = 10.0
"""The time after which fewer are stored."""
SILENCE_S = 5.0
"""The silence after which another request may take the place of one that adds to an upload: its client is gone."""
STOPPING_S = 10
"""The time after which a client may go on where the service was stopping."""
MOST_UPLOADS = 1000
"""The most uploads that an owner may have at a time."""
MOST_PARTS = 10_000
"""The most parts of an upload, one or more for each request: they are read with it, and each is a file."""
MOST_LARGEST = 32
"""The most uploads of the largest size that an owner may have at a time, or more of less in all."""


class _Turn:
    """A request that adds to an upload, and the lease that tells other nodes of it."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.arrived_at = self.renewed_at = monotonic()
        self._limit: asyncio.Timeout | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read a body, until `stop`, which raises `Unavailable` here."""
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError:
            detail = "The service is stopping; what has arrived is kept, send the rest later."
            raise Unavailable(detail, code="stopping", retry_after=STOPPING_S) from None
        finally:
            self._limit = None

    def stop(self) -> None:
        """End the reading."""
        if self._limit is not None:
            self._limit.reschedule(monotonic())


class Uploads:
    """The resumable uploads of this node's users. An upload is asked for with its owner."""

    def __init__(self, settings: Settings, store: Store, files: Files, room: Room, holder: str = LOCAL_HOLDER) -> None:
        """`holder` is the name of this node."""
        self._largest = settings.max_upload_bytes
        self._ttl_s = settings.upload_ttl_s
        self._store = store
        self._files = files
        self._room = room
        self._holder = holder
        self._turns: dict[str, _Turn] = {}
        self._ending: dict[str, asyncio.Task[Upload]] = {}

    def stop(self) -> None:
        """End the requests that add to uploads: the service stops, and what has arrived is kept."""
        for turn in self._turns.values():
            turn.stop()

    async def close(self) -> None:
        """Wait until what arrived is stored, at the end of the service."""
        await asyncio.gather(*self._ending.values(), return_exceptions=True)

    async def create(self, length: int, metadata: str, owner: str | None) -> Upload:
        """Make an upload of `length` bytes. Raises `TooLarge`, `TooManyRequests`, `Unavailable`."""
        check_size("Upload-Length", length, self._largest)
        async with self._room.reserved(length):
            most_bytes = MOST_LARGEST * self._largest
            return await self._store.create_upload(
                new_prompt_id(), owner, length, metadata, self._ttl_s, MOST_UPLOADS, most_bytes
            )

    async def find(self, upload_id: str, owner: str | None) -> Upload:
        """Return an upload, with all that a request before has brought. Raises `NotFound`."""
        if upload_id in self._ending:
            await asyncio.wait({self._ending[upload_id]}, timeout=SILENCE_S)
        return await self._store.upload(upload_id, owner)

    async def use(self, upload_id: str, owner: str | None) -> Upload:
        """Return an upload that is whole, which is kept for a while from now. Raises `NotFound`, `Conflict`."""
        upload = await self._store.use_upload(upload_id, owner, self._ttl_s)
        if not upload.is_whole:
            raise Conflict(
                f"The upload has {upload.received:,} of {upload.length:,} bytes; send the rest first.",
                code="upload_unfinished",
            )
        return upload

    async def delete(self, upload_id: str, owner: str | None) -> None:
        """Erase an upload. Jobs that were made of it keep their inputs. Raises `NotFound`, `OSError`."""
        await self._store.expire_upload(upload_id, owner)
        self._turns.pop(upload_id, None)
        await self._files.delete_parts(upload_id)
        await self._store.forget_upload(upload_id)

    async def append(self, request: web.Request, upload_id: str, owner: str | None, offset: int) -> Upload:
        """Add the body of a request to an upload that has `offset` bytes; return it as it is then.

        What has arrived is kept, whatever ends the request. Raises `Problem`, `OSError`.
        """
        await self.find(upload_id, owner)
        async with self._turn(upload_id) as turn:
            upload = await self._store.upload(upload_id, owner)
            if offset != upload.received:
                detail = f"The upload has {upload.received:,} bytes, not {offset:,}."
                raise Conflict(detail, code="upload_offset_mismatch")
            if len(upload.parts) >= MOST_PARTS:
                raise Conflict("The upload came in too many parts; send larger ones.", code="too_many_parts")
            missing = upload.length - upload.received
            announced = request.content_length
            body = BoundedBytes(partial(bytes_to_the_cut, request), announced or 0, missing)
            async with self._room.reserved(missing if announced is None else announced) as arrived:
                await send_continue(request)
                growth = _Growth(self._store, self._files, upload, self._ttl_s)
                try:
                    async with turn.reading():
                        while piece := await body.read():
                            turn.arrived_at = monotonic()
                            await self._keep_turn(upload_id, turn)
                            if await growth.add(piece):
                                await self._room.check()
                            arrived(len(piece))
                finally:
                    upload = await self._end(upload_id, growth)
            return upload

    async def _end(self, upload_id: str, growth: _Growth) -> Upload:
        """Store what has arrived, even where who waits for that is cancelled."""
        task = self._ending[upload_id] = asyncio.create_task(growth.end(), name=f"end of upload {upload_id}")
        task.add_done_callback(lambda task: self._ended(upload_id, task))
        return await asyncio.shield(task)

    def _ended(self, upload_id: str, task: asyncio.Task[Upload]) -> None:
        if self._ending.get(upload_id) is task:
            del self._ending[upload_id]
        if not task.cancelled():
            task.exception()  # which nobody may have waited for

    @asynccontextmanager
    async def _turn(self, upload_id: str) -> AsyncIterator[_Turn]:
        """Let nobody else add to an upload meanwhile. Raises `Locked` where somebody does."""
        other = self._turns.get(upload_id)
        if other is not None and monotonic() - other.arrived_at < SILENCE_S:
            raise _locked()
        turn = self._turns[upload_id] = _Turn()
        try:
            await self._take_lease(upload_id, turn)
            yield turn
        finally:
            if self._turns.get(upload_id) is turn:
                del self._turns[upload_id]
            if turn.lease is not None:
                await asyncio.shield(self._store.release_lease(turn.lease))

    async def _take_lease(self, upload_id: str, turn: _Turn) -> None:
        turn.lease = await self._store.acquire_lease(upload_lease(upload_id), self._holder, SILENCE_S)
        if turn.lease is None:
            raise _locked()

    async def _keep_turn(self, upload_id: str, turn: _Turn) -> None:
        """Tell other nodes, now and then, that bytes arrive. Raises `Locked` where another request has taken over."""
        if self._turns.get(upload_id) is not turn:
            raise _locked()
        if turn.arrived_at - turn.renewed_at >= SILENCE_S / 3:
            turn.renewed_at = turn.arrived_at
            await self._take_lease(upload_id, turn)


def _locked() -> Locked:
    return Locked("Another request is adding to this upload.", code="upload_locked")


class _Growth:
    """The bytes that one request adds to an upload, stored a good number at a time."""

    def __init__(self, store: Store, files: Files, upload: Upload, ttl_s: float) -> None:
        self._store = store
        self._files = files
        self._first = upload
        self._stored = upload
        self._writer = files.new_part_writer(upload.id)
        self._ttl_s = ttl_s
        self._waiting_bytes = self._unchecked_bytes = 0
        self._stored_at = monotonic()

    async def add(self, piece: bytes) -> bool:
        """Take bytes; return whether it is time to look at the disk's free space."""
        await self._writer.write(piece)
        RECEIVED_BYTES.inc(len(piece))
        self._waiting_bytes += len(piece)
        self._unchecked_bytes += len(piece)
        if self._waiting_bytes >= STORE_BYTES or monotonic() - self._stored_at >= STORE_S:
            await self._keep()
        if self._unchecked_bytes < ROOM_CHECK_BYTES:
            return False
        self._unchecked_bytes = 0
        return True

    async def end(self) -> Upload:
        """Store the rest; return the upload as it is then."""
        try:
            await self._keep()
        except Conflict:
            if not await self._store.known_uploads([self._first.id]):  # it was erased meanwhile, and this with it
                await self._files.delete_parts(self._first.id)
            raise
        finally:
            await self._writer.close()
        return self._stored

    async def _keep(self) -> None:
        """Store what has arrived, then commit it. Raises `Conflict` where that follows what is not there any more."""
        parts = [*self._first.parts, *await self._writer.store()]
        self._waiting_bytes, self._stored_at = 0, monotonic()
        received = sum(part.size for part in parts)
        if received == self._stored.received:
            return
        is_one_whole = not self._first.parts and received == self._first.length
        sha256 = self._writer.sha256 if is_one_whole else None
        grown = await self._store.grow_upload(self._stored, parts, sha256, self._ttl_s)
        if grown is None:
            detail = "Another request has added to this upload meanwhile, or it was deleted."
            raise Conflict(detail, code="upload_offset_mismatch")
        self._stored = grown
