"""The client for programs without an event loop: the same methods, which return when they are done."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from yarl import URL

from . import client

P = ParamSpec("P")
T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faceswap client", daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        """Wait for some work; an interruption, such as Ctrl-C, cancels it first."""

        async def awaited() -> T:
            return await work

        future = asyncio.run_coroutine_threadsafe(awaited(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread."""
        if not self._loop.is_closed():
            self.run(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def _returning(
    method: Callable[Concatenate[client.FaceSwap, P], Awaitable[T]],
) -> Callable[Concatenate[FaceSwap, P], T]:
    """Make the blocking form of a method."""

    def call(self: FaceSwap, /, *arguments: P.args, **named: P.kwargs) -> T:
        return self._loop.run(method(self._client, *arguments, **named))

    functools.update_wrapper(call, method)
    return call


def _yielding(
    method: Callable[Concatenate[client.FaceSwap, P], AsyncIterator[T]],
) -> Callable[Concatenate[FaceSwap, P], Iterator[T]]:
    """Make the blocking form of a method that yields."""

    def call(self: FaceSwap, /, *arguments: P.args, **named: P.kwargs) -> Iterator[T]:
        iterator = method(self._client, *arguments, **named)
        try:
            while True:
                try:
                    yield self._loop.run(anext(iterator))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run(iterator.aclose())  # type: ignore[attr-defined]  # an async generator is an iterator

    functools.update_wrapper(call, method)
    return call


class FaceSwap:
    """A client of one service, used as `with FaceSwap(url, key) as fs`; see `faceswap.FaceSwap`.

    Callbacks are called in another thread.
    """

    def __init__(
        self, url: str | URL = client.DEFAULT_URL, key: str | None = None, *, resumes: int = client.RESUMES
    ) -> None:
        self._loop = _Loop()
        self._client = client.FaceSwap(url, key, resumes=resumes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread."""
        try:
            self._loop.run(self._client.close())
        finally:
            self._loop.close()

    swap = _returning(client.FaceSwap.swap)
    submit = _returning(client.FaceSwap.submit)
    upload = _returning(client.FaceSwap.upload)
    delete_upload = _returning(client.FaceSwap.delete_upload)
    faces = _returning(client.FaceSwap.faces)
    events = _yielding(client.FaceSwap.events)
    wait = _returning(client.FaceSwap.wait)
    status = _returning(client.FaceSwap.status)
    jobs = _yielding(client.FaceSwap.jobs)
    health = _returning(client.FaceSwap.health)
    cancel = _returning(client.FaceSwap.cancel)
    retry = _returning(client.FaceSwap.retry)
    update = _returning(client.FaceSwap.update)
    delete = _returning(client.FaceSwap.delete)
    download = _returning(client.FaceSwap.download)
