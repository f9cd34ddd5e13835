"""The worker processes of a service: started when they are needed, kept warm, replaced after a crash."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from .. import errors
from ..child_process import wait_within
from .process import Child, ChildDied, ChildError

IDLE_S = 30.0
"""The time that a process is kept after its last call."""
CLOSE_S = 0.5
"""The time that processes have to end by themselves when the service stops."""


class Pool:
    """As many processes as there are calls at a time; who calls bounds that."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._idle: list[Child] = []
        self._starting = asyncio.Lock()
        self._closed = False

    async def close(self) -> None:
        """End all children within a second; calls in progress fail."""
        self._closed = True
        async with self._starting:
            self._idle.clear()
        for child in self._children:
            child.end()
        await wait_within(CLOSE_S, self._wait_for_ends())
        for child in self._children:
            child.kill()
        await self._wait_for_ends()

    async def _wait_for_ends(self) -> None:
        for child in self._children:
            await child.process.wait()

    async def ask(self, call: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Make one call in a child of its own.

        Only after a good answer is the child used again: damaged media may have damaged its memory. When one
        that was used before dies all the same, a fresh one gets the call.
        """
        if warm := self._take_idle():
            with contextlib.suppress(ChildDied):
                return await self._ask_in(warm, call, arguments, timeout)
        return await self._ask_in(await self._start(), call, arguments, timeout)

    async def _ask_in(self, child: Child, call: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            result = _unwrap(call, await child.ask(call, arguments, timeout))
        except BaseException:
            child.kill()
            raise
        self._keep_idle(child)
        return result

    async def _start(self) -> Child:
        async with self._starting:
            if self._closed:
                raise ChildError("closed")
            try:
                child = await Child.start()
            except OSError as error:
                raise ChildError(f"no process: {error!r}") from error
            self._children = [c for c in self._children if c.process.returncode is None] + [child]
            return child

    def _take_idle(self) -> Child | None:
        """Return the idle child that was used last and is alive."""
        while self._idle:
            child = self._idle.pop()
            child.cancel_expiry()
            if child.alive:
                return child
        return None

    def _keep_idle(self, child: Child) -> None:
        """Keep the child for the next call, for a while."""
        self._idle.append(child)
        child.expire(IDLE_S, self._idle)


def _unwrap(call: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the result in an answer, or raise the error it holds."""
    match answer:
        case {"result": dict(result)}:
            return result
        case {"problem": {"kind": "UnsupportedMedia", "code": str(code), "detail": str(detail)}}:
            raise errors.UnsupportedMedia(detail, code=code)
        case {"problem": {"code": str(code), "detail": str(detail)}}:
            raise errors.Unprocessable(detail, code=code)
        case {"failure": {"code": str(code), "message": str(message), "transient": bool(transient)}}:
            raise errors.JobFailure(code, message, transient=transient)
    raise ChildError(f"{call}: {answer.get('crash', 'an answer of another kind')}")
