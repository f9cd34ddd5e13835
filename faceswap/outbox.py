"""The outbox: sends what the ends of jobs have left to be sent, again until it arrives or its time is over.

The database says what is due; each attempt is claimed there for a short time that is renewed while it lasts. What a
crash interrupts is due again, at once for the next process of this node's name, else when the claim has run out: a
receiver may get the same thing twice, under the same id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path, PurePath

import aiofiles.os
import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from .config import Settings
from .deliveries import Delivery, DeliveryKind, DeliveryState, pause_s, signature
from .errors import INTERNAL_ERROR, NotFound
from .files import PIECE_BYTES, Files
from .jobs import RESULT_TYPES
from .store import LOCAL_HOLDER, Store, StoreError, retry_writes
from .tracing import stage
from .url_guard import AddressRefused, UrlGuard

log = logging.getLogger(__name__)

AT_ONCE: Mapping[DeliveryKind, int] = {DeliveryKind.WEBHOOK: 32, DeliveryKind.RESULT: 8}
"""Deliveries of each kind under way at a time."""
AT_ONCE_EACH = 4
"""Deliveries of a kind under way at a time to one origin: a bad receiver keeps no other waiting.

All those of one owner get half of the places at most: nor do many receivers of one user.
"""
LOOK_S = 1.0
"""Between two looks for what is due."""
CLAIM_S, RENEW_S = 30.0, 5.0
"""The time after which another may send what this process was sending, and the time between two renewals of that."""
WEBHOOK_S = 15.0
"""The time for a webhook to be connected, sent and answered."""
STALL_S = 30.0
"""The time in which a receiver takes the next piece of a result, or answers after the last."""
RESULT_S, SLOWEST_BYTES_PER_S = 600.0, 256 * 1024
"""The time for a whole result to be sent, or that of the slowest average rate where that is longer."""
DELIVERED, GONE = range(200, 300), 410

Pieces = AsyncGenerator[bytes] | AsyncGenerator[memoryview]


class _Failure(Exception):
    """The failure of an attempt: a sentence, the status that was answered; `final` when no other can succeed."""

    def __init__(self, error: str, status: int | None = None, *, final: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.status = status
        self.final = final


class Outbox:
    """Sends the deliveries that are due. Every request goes through the guard, and follows no redirect."""

    def __init__(
        self, settings: Settings, store: Store, files: Files, guard: UrlGuard, holder: str = LOCAL_HOLDER
    ) -> None:
        """Send under the name of `holder`, the node."""
        self._secrets = settings.webhook_secret
        self._public_url = settings.public_url
        self._store = store
        self._files = files
        self._guard = guard
        self._holder = holder

    async def run(self) -> None:
        """Send for as long as the service runs."""
        await retry_writes(partial(self._store.release_deliveries, self._holder))
        async with self._guard.session(STALL_S) as session, asyncio.TaskGroup() as tasks:
            for kind, at_once in AT_ONCE.items():
                tasks.create_task(self._run(kind, at_once, session), name=f"deliveries of kind {kind}")

    async def _run(self, kind: DeliveryKind, at_once: int, session: aiohttp.ClientSession) -> None:
        """Send what is due of a kind, so many at a time."""
        busy, owners = Counter[str](), Counter[str]()
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            while True:
                ended.clear()
                delivery = await self._claim(kind, busy, owners) if busy.total() < at_once else None
                if delivery is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await ended.wait()
                    continue
                busy[delivery.origin] += 1
                owners[delivery.owner or ""] += 1
                task = tasks.create_task(self._deliver(delivery, session), name=f"delivery {delivery.id}")
                task.add_done_callback(partial(_count_down, delivery, busy, owners, ended))

    async def _claim(self, kind: DeliveryKind, busy: Counter[str], owners: Counter[str]) -> Delivery | None:
        full = [origin for origin, count in busy.items() if count >= AT_ONCE_EACH]
        greedy = [owner for owner, count in owners.items() if owner and count >= AT_ONCE[kind] // 2]
        try:
            return await self._store.claim_delivery(kind, self._holder, CLAIM_S, full, greedy)
        except StoreError as error:
            if not error.transient:
                raise
            return None

    async def _deliver(self, delivery: Delivery, session: aiohttp.ClientSession) -> None:
        """Make an attempt under its claim, which cancels it when it is lost, and store what came of it."""
        try:
            async with asyncio.timeout(CLAIM_S) as claim:
                renewal = asyncio.create_task(self._renew(delivery, claim), name=f"renewal of {delivery.id}")
                try:
                    await self._attempt(delivery, session)
                finally:
                    renewal.cancel()
                    await asyncio.gather(renewal, return_exceptions=True)
        except TimeoutError:
            log.info("job %s: the delivery %s was given up here", delivery.prompt_id, delivery.id)

    async def _renew(self, delivery: Delivery, claim: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        kept = True
        while kept:
            await asyncio.sleep(RENEW_S)
            until = now() + CLAIM_S
            try:
                kept = await self._store.keep_delivery(delivery, CLAIM_S)
            except StoreError:  # it may be able to before the claim has run out
                continue
            claim.reschedule(until if kept else now())

    async def _attempt(self, delivery: Delivery, session: aiohttp.ClientSession) -> None:
        try:
            with stage("deliver", delivery.traceparent, prompt_id=delivery.prompt_id, kind=delivery.kind.value):
                status = await self._send(delivery, session)
        except _Failure as failure:
            await self._fail(delivery, failure)
            return
        except Exception:  # the top of the task
            log.exception("delivery %s", delivery.id)
            await self._fail(delivery, _Failure(INTERNAL_ERROR))
            return
        log.info("job %s: its %s was delivered to %s", delivery.prompt_id, delivery.kind, delivery.origin)
        await retry_writes(partial(self._store.end_delivery, delivery, DeliveryState.DELIVERED, status))

    async def _fail(self, delivery: Delivery, failure: _Failure) -> None:
        state = DeliveryState.FAILED
        if failure.final:
            await retry_writes(partial(self._store.end_delivery, delivery, state, failure.status, failure.error))
        else:
            pause = pause_s(delivery.attempts, random.random())
            state = await retry_writes(
                partial(self._store.postpone_delivery, delivery, pause, failure.status, failure.error)
            )
        log.warning(
            "job %s: its %s is not delivered to %s%s: %s",
            delivery.prompt_id,
            delivery.kind,
            delivery.origin,
            " and is given up" if state is DeliveryState.FAILED else "",
            failure.error,
        )

    async def _send(self, delivery: Delivery, session: aiohttp.ClientSession) -> int:
        """Send a delivery; return the status of the answer, of which nothing more is read. Raises `_Failure`."""
        send = self._post_webhook if delivery.kind is DeliveryKind.WEBHOOK else self._put_result
        try:
            status = await send(delivery, session)
        except TimeoutError:
            raise _Failure("The receiver did not answer in time.") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise _Failure("The URL leads to a non-public address.", final=True) from None
            raise _Failure("The receiver cannot be reached.") from None
        except (aiohttp.InvalidURL, aiohttp.ClientError):
            raise _Failure("The connection broke, or what the receiver answered is no HTTP.") from None
        except OSError as error:
            log.warning("job %s: its result cannot be read: %s", delivery.prompt_id, error.strerror or error)
            raise _Failure("The result could not be read.") from None
        if status not in DELIVERED:
            raise _Failure(f"The receiver answered with HTTP status {status}.", status, final=status == GONE)
        return status

    async def _post_webhook(self, delivery: Delivery, session: aiohttp.ClientSession) -> int:
        body, timestamp = self._body(delivery), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
        }
        if self._secrets:
            headers["webhook-signature"] = signature(self._secrets, delivery.id, timestamp, body)
        if delivery.traceparent is not None:
            headers["traceparent"] = delivery.traceparent
        async with (
            asyncio.timeout(WEBHOOK_S),
            session.post(_url(delivery), data=body, headers=headers, allow_redirects=False) as response,
        ):
            return response.status

    def _body(self, delivery: Delivery) -> bytes:
        """Return the body that was stored, its link beginning with the address that people reach the service by."""
        document = json.loads(delivery.body)
        if self._public_url is not None and document["data"]["result"] is not None:
            document["data"]["result"] = str(self._public_url).rstrip("/") + document["data"]["result"]
        return json.dumps(document, ensure_ascii=False).encode()

    async def _put_result(self, delivery: Delivery, session: aiohttp.ClientSession) -> int:
        pieces, size, content_type = await self._open_result(delivery.prompt_id)
        url = _url(delivery)
        headers = {}
        longest_s = max(RESULT_S, size / SLOWEST_BYTES_PER_S)
        if {"sv", "sig"} <= url.query.keys():  # Azure's signed addresses want to know the kind of blob
            headers["x-ms-blob-type"] = "BlockBlob"
        async with asyncio.timeout(longest_s), asyncio.timeout(STALL_S) as stall:
            body = _ResultBody(pieces, size, content_type, stall)
            async with session.put(url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status

    async def _open_result(self, prompt_id: str) -> tuple[Pieces, int, str]:
        """Return a result's bytes, piece by piece, their number and their media type."""
        try:
            job = await retry_writes(partial(self._store.job, prompt_id))
            result = await self._files.find_result(job)
        except NotFound:
            result = None
        if result is None:
            raise _Failure("The result was erased before it could be sent.", final=True)
        content_type = RESULT_TYPES[PurePath(job.stored_result).suffix]
        if isinstance(result, Path):
            return _read_file(result), (await aiofiles.os.stat(result)).st_size, content_type
        return result.read(0, result.size), result.size, content_type


class _ResultBody(aiohttp.Payload):
    """A result as the body of a request, read by the task that sends it, piece by piece."""

    def __init__(self, pieces: Pieces, size: int, content_type: str, stall: asyncio.Timeout) -> None:
        """Put off `stall` whenever the receiver has taken a piece."""
        super().__init__(pieces, content_type=content_type)
        self._size = size
        self._stall = stall

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Refuse: a video is no text."""
        raise TypeError("a video is no text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the whole result."""
        now = asyncio.get_running_loop().time
        async with aclosing(self._value) as pieces:
            async for piece in pieces:
                await writer.write(piece)
                self._stall.reschedule(now() + STALL_S)


async def _read_file(path: Path) -> AsyncGenerator[bytes]:
    """Yield a file piece by piece, opened for each anew: an attempt that is cut off leaves nothing open."""
    offset = 0
    while piece := await asyncio.to_thread(_read_piece, path, offset):
        yield piece
        offset += len(piece)


def _read_piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


def _count_down(
    delivery: Delivery, busy: Counter[str], owners: Counter[str], ended: asyncio.Event, _: asyncio.Task[None]
) -> None:
    for counter, name in ((busy, delivery.origin), (owners, delivery.owner or "")):
        counter[name] -= 1
        if not counter[name]:
            del counter[name]
    ended.set()


def _url(delivery: Delivery) -> URL:
    """Return the URL as it was given: what was signed is not quoted anew."""
    return URL(delivery.url, encoded=True)
