"""A worker process, as the service sees it: it is sent one call at a time, and ended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, Self

from ..child_process import kill_group
from ..limits import FEW_THREADS

MAX_ANSWER_BYTES = 1 << 20
"""The longest line that is taken for an answer."""


class ChildError(Exception):
    """A child that answered nonsense or took too long."""


class ChildDied(ChildError):
    """A child that ended without an answer."""


class Child:
    """One worker process. It has no socket or file of ours, and ends when its stdin closes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._expiry: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls) -> Self:
        """Start a worker process. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "faceswap.media.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            limit=MAX_ANSWER_BYTES,
            env={**os.environ, **FEW_THREADS},
        )
        return cls(process)

    async def ask(self, call: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send one call and wait for its answer. Raises ChildError."""
        assert self.process.stdin and self.process.stdout
        try:
            async with asyncio.timeout(timeout):
                message = json.dumps({"call": call, "arguments": arguments}, default=str)
                self.process.stdin.write(message.encode() + b"\n")
                await self.process.stdin.drain()
                line = await self.process.stdout.readline()
                if not line:
                    raise ChildDied(call)
                answer = json.loads(line)
        except ConnectionError as error:
            raise ChildDied(call) from error
        except (TimeoutError, ValueError) as error:
            raise ChildError(f"{call}: {error!r}") from error
        if not isinstance(answer, dict):
            raise ChildError(f"{call}: an answer that is no object")
        return answer

    @property
    def alive(self) -> bool:
        """True if the process can be asked once more."""
        assert self.process.stdout
        return self.process.returncode is None and not self.process.stdout.at_eof()

    def expire(self, seconds: float, idle: list[Child]) -> None:
        """End the child, and take it out of `idle`, unless `cancel_expiry` is called within `seconds`."""
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire, idle)

    def cancel_expiry(self) -> None:
        """Cancel the expiry."""
        if self._expiry:
            self._expiry.cancel()

    def _expire(self, idle: list[Child]) -> None:
        idle.remove(self)
        self.end()

    def end(self) -> None:
        """Ask the process to end: it does when its stdin closes."""
        assert self.process.stdin
        self.cancel_expiry()
        self.process.stdin.close()

    def kill(self) -> None:
        """End the process at once."""
        self.end()
        if self.process.returncode is None:
            kill_group(self.process.pid)
