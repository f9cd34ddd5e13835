"""One prompt that is out, and how long it is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .comfy.messages import Message
from .jobs import Segment

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


@dataclass(frozen=True, slots=True)
class Patience:
    """The bounds of every wait for an engine, in seconds, and of every repetition."""

    reconcile_s: float = 3.0
    """Between two looks at queue and history while a prompt is out."""
    silence_s: float = 20.0
    """Silence on the socket, while a prompt runs, after which the socket is distrusted."""
    stuck_s: float = 600.0
    """Silence after which the engine is held for stuck."""
    stop_s: float = 60.0
    """For an interrupted prompt to leave the queue."""
    unreachable_s: float = 30.0
    """Without an answer before the work is given to another ComfyUI, where there is one."""
    confirm_s: float = 0.5
    """Between the two looks that must both miss a prompt before it is lost."""
    retry_s: tuple[float, ...] = (2.0, 10.0)
    """Before the second and the third attempt at what may pass by itself; there is no fourth."""
    gone_s: float = 24 * 3600.0
    """Without any engine before the jobs that wait for one end."""
    loss_limit: int = 25
    """Times a prompt may be forgotten before its job fails."""
    death_limit: int = 5
    """Times in a row an engine may die while it works on a segment before its job fails: some videos kill engines."""
    inspect_s: float = 60.0
    """Between two looks at what a ComfyUI has: its nodes, its models, its memory."""
    outage_s: float = 3.0
    """Without any ComfyUI before the jobs that wait for one are told."""


async def _ignore_executing(node: str) -> None:
    """Until somebody wants to know."""


@dataclass(eq=False)
class Flight:
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
