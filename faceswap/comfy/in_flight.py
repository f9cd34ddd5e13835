"""A prompt that is in flight, and the ways in which following it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..jobs import Segment
from .messages import Message

T = TypeVar("T")


class Lost(Exception):
    """ComfyUI was asked, twice, and does not know the prompt: it has to be submitted again."""


class GivenUp(Exception):
    """ComfyUI cannot be asked about the prompt, or does not move, and another can do the work.

    It may still know the prompt and run it: the id is never used again, and the work is done under a new one.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Stopped(Exception):
    """The prompt was stopped because we asked for it; ComfyUI no longer works on it."""


async def _ignore_executing(node: str) -> None:
    """Until somebody wants to know."""


@dataclass(eq=False)
class InFlightPrompt:
    """One prompt that is out, and what was heard of it."""

    segment: Segment
    on_executing: Callable[[str], Awaitable[None]] = _ignore_executing
    on_progress: Callable[[str, float, float], None] = lambda node, value, maximum: None
    on_preview: Callable[[bytes], None] = lambda image: None
    inbox: asyncio.Queue[Message | None] = field(default_factory=lambda: asyncio.Queue(maxsize=1024))
    stopping_since: float | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float = field(default_factory=time.monotonic)
    heard_at: float = field(default_factory=time.monotonic)
    distrusted_at: float = 0.0
    sent: bool = False
    """Whether ComfyUI may know the prompt."""
    running: bool = False
    """Whether ComfyUI was seen at work on it: an engine that dies then may have died of it."""
    node: str | None = None

    @property
    def prompt_id(self) -> str:
        """The id ComfyUI knows it by."""
        assert self.segment.comfy_prompt_id is not None
        return self.segment.comfy_prompt_id

    def nudge(self, message: Message | None = None) -> None:
        """Put something into the inbox; when that is full the regular look will find out."""
        if not self.inbox.full():
            self.inbox.put_nowait(message)

    def stop(self) -> None:
        """Ask for the prompt's end."""
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.stopped.set()
            self.nudge()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may be given up at any moment; raises `Stopped` as soon as the prompt is to be stopped."""
        doing, stop = asyncio.ensure_future(work), asyncio.create_task(self.stopped.wait())
        try:
            await asyncio.wait((doing, stop), return_when=asyncio.FIRST_COMPLETED)
            if self.stopping_since is not None:
                raise Stopped
            return doing.result()
        finally:
            doing.cancel()
            stop.cancel()
            await asyncio.gather(doing, stop, return_exceptions=True)
