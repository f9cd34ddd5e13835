"""A prompt that is in flight, the messages about it, and the ways in which it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from ..clock import monotonic
from ..jobs import Segment
from .client import ComfyError, Outcome
from .messages import Executing, Preview, Progress

INBOX_LIMIT = 1024
"""Unread messages that are kept; those that come while there are so many are dropped."""

News = Executing | Progress | Preview
"""The messages that `Backend.follow` yields."""


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


class Inbox:
    """Unread messages about one prompt.

    It is bounded: a newer value of a progress bar replaces the older one, a picture the one before.
    """

    def __init__(self) -> None:
        self._messages: deque[Executing | Progress] = deque()
        self._preview: Preview | None = None
        self._wake = asyncio.Event()

    def put(self, message: News) -> None:
        """Add a message. Never waits."""
        match message:
            case Preview():
                self._preview = message
            case Progress() if self._messages and _supersedes(message, self._messages[-1]):
                self._messages[-1] = message
            case _ if len(self._messages) < INBOX_LIMIT:
                self._messages.append(message)
        self.wake()

    def take(self) -> News | None:
        """Remove and return the oldest message; None when all were read."""
        if self._messages:
            return self._messages.popleft()
        preview, self._preview = self._preview, None
        return preview

    async def wait(self) -> None:
        """Wait for a message, or for `wake`."""
        await self._wake.wait()
        self._wake.clear()

    def wake(self) -> None:
        """End the wait: there is something to look at."""
        self._wake.set()


def _supersedes(newer: Progress, older: Executing | Progress) -> bool:
    """Return whether nothing is lost with the older one. A bar that falls back begins another pass."""
    return isinstance(older, Progress) and older.node == newer.node and older.value <= newer.value


@dataclass(eq=False)
class InFlightPrompt:
    """One attempt at a segment, from its claim until its result was collected."""

    segment: Segment
    prompt_id: str = field(init=False)
    """The id ComfyUI knows it by: the segment's, unless ComfyUI chose one itself."""
    sent: bool = False
    """True once ComfyUI may know the prompt."""
    timed: bool = False
    """True while its time tells the engine's speed: it was sent by this process, and has not ended."""
    audible: bool = True
    """False while the socket may tell nothing of it: another node has sent it, under another client id."""
    running: bool = False
    """True once ComfyUI was seen at work on it: an engine that dies then may have died of it."""
    outcome: Outcome | None = None
    """The success that history told of."""
    refusal: ComfyError | None = None
    """The error that ComfyUI answered the submission with; it may have queued the prompt all the same."""
    node: str | None = None
    """The node that runs."""
    inbox: Inbox = field(default_factory=Inbox)
    stopping_since: float | None = None
    started_at: float = field(default_factory=monotonic)
    heard_at: float = field(default_factory=monotonic)
    distrusted_at: float = 0.0
    _due: asyncio.Event = field(default_factory=asyncio.Event)
    _stoppable: asyncio.Timeout | None = None

    def __post_init__(self) -> None:
        assert self.segment.comfy_prompt_id is not None
        self.prompt_id = self.segment.comfy_prompt_id

    def look_soon(self) -> None:
        """Have ComfyUI asked about the prompt at once."""
        self._due.set()

    async def until_due(self, timeout: float) -> None:
        """Wait until ComfyUI is to be asked about the prompt, after `timeout` seconds at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._due.wait()
        self._due.clear()

    def stop(self) -> None:
        """Ask for the prompt's end."""
        if self.stopping_since is None:
            self.stopping_since = monotonic()
            self.look_soon()
            if self._stoppable is not None:
                self._stoppable.reschedule(self.stopping_since)

    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[None]:
        """Do work that may be given up at any moment: `stop` cancels it and raises `Stopped`."""
        if self.stopping_since is not None:
            raise Stopped
        try:
            async with asyncio.timeout(None) as self._stoppable:
                yield
        except TimeoutError:
            if self.stopping_since is None:
                raise
        finally:
            self._stoppable = None
        if self.stopping_since is not None:
            raise Stopped


Attempts = dict[str, dict[InFlightPrompt, asyncio.Task[None]]]
"""The attempts that a node has in hand, by the ids of their jobs, each with its task."""
