"""The bucket of a world: objects that all nodes reach, unless it is away for some of them or answers are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from faceswap.files.errors import FilesUnavailable
from faceswap.files.objects import StoredObject

from .loop import WALL_S

if TYPE_CHECKING:
    from .world import World

T = TypeVar("T")

LATENCY_S = 0.02
"""The longest that a request, or its answer, is on its way."""
GIVEN_UP_S = 3.0
"""The longest that a request is repeated to a bucket that is away."""
PAGE = 2
"""Objects in a page of a listing: few, so that there are several."""


class Bucket:
    """Objects, and the nodes that cannot reach them. Keys are relative to the service's prefix."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        """The bytes of each object, and when they were stored."""
        self.away_for: set[str] = set()
        """The names of the nodes that cannot reach it."""
        self.lost_answers = 0.0
        """Share of the requests of which the node cannot tell whether they were carried out."""

    def heal(self) -> None:
        """Let everything through."""
        self.away_for.clear()
        self.lost_answers = 0.0


class SimulatedObjects:
    """The bucket as one node sees it, with the methods of `files.objects.Objects`."""

    def __init__(self, world: World) -> None:
        self.url = "s3://simulated"
        assert world.bucket is not None
        self._world = world
        self._bucket = world.bucket

    async def _ask(self, work: Callable[[], T]) -> T:
        """Carry out a request. Once sent it arrives, whatever becomes of the node. Raises `OSError`."""
        world, machine = self._world, self._world.scheduler.running
        assert machine is not None
        if machine.name in self._bucket.away_for:
            await asyncio.sleep(world.random.random() * GIVEN_UP_S)
            raise FilesUnavailable("the bucket cannot be reached")
        is_lost = world.chance(self._bucket.lost_answers)
        is_done = not is_lost or world.chance(0.5)
        answer: asyncio.Future[T] = machine.create_future()

        def arrive() -> None:
            try:
                outcome: T | Exception = work() if is_done else FilesUnavailable("the bucket answers 503")
            except OSError as error:
                outcome = error
            if is_lost:
                outcome = FilesUnavailable("the answer of the bucket was lost")
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        world.environment.call_later(world.random.random() * LATENCY_S, arrive)
        return await answer

    def _store(self, key: str, data: bytes) -> None:
        self._bucket.objects[key] = (data, WALL_S + self._world.scheduler.now)

    def _look(self, key: str) -> StoredObject:
        data, at = self._load(key)
        return StoredObject(key, len(data), datetime.fromtimestamp(at, UTC))

    def _load(self, key: str) -> tuple[bytes, float]:
        if key not in self._bucket.objects:
            raise FileNotFoundError(key)
        return self._bucket.objects[key]

    async def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        await self._ask(lambda: self._store(key, data))

    def upload(self, key: str, most_bytes: int, attributes: Mapping[str, str] | None = None) -> SimulatedUpload:
        """Return an upload."""
        return SimulatedUpload(self, key)

    async def put_file(self, key: str, path: Path, attributes: Mapping[str, str] | None = None) -> None:
        """Store a file as an object."""
        await self.put(key, path.read_bytes())

    async def get(self, key: str) -> bytes:
        """Return an object."""
        return (await self._ask(lambda: self._load(key)))[0]

    async def find(self, key: str) -> StoredObject:
        """Return what is known of an object."""
        return await self._ask(lambda: self._look(key))

    async def read(self, key: str, start: int, end: int) -> AsyncGenerator[memoryview]:
        """Yield bytes of an object."""
        data = await self.get(key)
        yield memoryview(data[start:end])

    async def pages(self, prefix: str) -> AsyncIterator[list[StoredObject]]:
        """Yield what is stored below a prefix."""
        last = ""
        while True:
            page = await self._ask(lambda last=last: self._page(prefix, last))
            if not page:
                return
            yield page
            last = page[-1].key

    def _page(self, prefix: str, last: str) -> list[StoredObject]:
        keys = sorted(key for key in self._bucket.objects if key.startswith(prefix) and key > last)
        return [self._look(key) for key in keys[:PAGE]]

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects."""
        present = list(keys)

        def delete() -> None:
            for key in present:
                self._bucket.objects.pop(key, None)

        await self._ask(delete)

    async def delete_all(self, prefix: str) -> None:
        """Delete all below a prefix."""
        async for page in self.pages(prefix):
            await self.delete([found.key for found in page])


class SimulatedUpload:
    """An object that is stored once it is finished."""

    def __init__(self, objects: SimulatedObjects, key: str) -> None:
        self._objects = objects
        self._key = key
        self._data = bytearray()

    async def write(self, piece: bytes | bytearray) -> None:
        """Append a piece."""
        self._data += piece

    async def finish(self) -> None:
        """Store the object."""
        await self._objects.put(self._key, bytes(self._data))

    async def abort(self) -> None:
        """End the upload."""
