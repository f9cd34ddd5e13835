"""Transactions of one connection that come at the same time: one call to its thread, and one commit, for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .changes import Change
from .connection import Statements
from .queue import Queue

T = TypeVar("T")
Body = Callable[[], Coroutine[Any, Any, T]]
"""The work of a transaction, which waits for its own statements only."""

MOST_TOGETHER = 64
"""Transactions with one commit, at most: none waits for more than so many others."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a body, or the exception that it ended with: nothing is kept then of what it did."""

    result: Any = None
    error: BaseException | None = None


class Thread(Protocol):
    """A connection whose statements a thread executes."""

    @property
    def statements(self) -> Statements:
        """The statements that the bodies of transactions execute."""

    async def transact(self, bodies: Sequence[Body[Any]]) -> list[Outcome]:
        """Carry out bodies one after another, within the thread, and commit what they did.

        Raises `StoreError` when nothing of it could be kept.
        """

    def take_changes(self) -> Sequence[Change]:
        """Return what was committed since the last call."""


@dataclass(slots=True, eq=False)
class _Pending:
    body: Body[Any]
    on_commit: Callable[[Any], None]
    outcome: asyncio.Future[Any]


class GroupCommit:
    """Carries out transactions in the order in which they came."""

    def __init__(self, thread: Thread, lock: asyncio.Lock, queue: Queue | None) -> None:
        self.statements = thread.statements
        self._thread = thread
        self._lock = lock
        self._queue = queue
        self._pending: list[_Pending] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, body: Body[T], on_commit: Callable[[T], None]) -> T:
        """Carry out a body and commit what it did; raises what it raised, or the `StoreError` of the commit.

        It is called again where a commit with others failed. One whose waiter is cancelled before it began is left out;
        one that has begun runs to its end. `on_commit` is called with the body's result after the commit, in the order
        of the transactions, whether or not somebody still waits.
        """
        pending = _Pending(body, on_commit, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if self._task is None:
            self._task = asyncio.create_task(self._run_pending(), name="transactions")
        result: T = await pending.outcome
        return result

    async def close(self) -> None:
        """Wait for the transactions that came before."""
        if self._task is not None:
            await self._task

    async def _run_pending(self) -> None:
        try:
            while self._pending:
                async with self._lock:
                    group = [one for one in self._pending[:MOST_TOGETHER] if not one.outcome.done()]
                    del self._pending[:MOST_TOGETHER]
                    await self._run_group(group)
        finally:
            self._task = None

    async def _run_group(self, group: Sequence[_Pending]) -> None:
        """Carry out a group; each of those who wait gets a result or an error."""
        try:
            outcomes = await self._thread.transact([one.body for one in group])
        except Exception as error:  # noqa: BLE001  # the top of the task: nobody may wait for ever
            if len(group) > 1:  # one of them may be the cause, as one that needs more room than there is
                for one in group:
                    await self._run_group([one])
                return
            outcomes = [Outcome(error=error) for _ in group]
        try:
            self._tell(group, outcomes)
        except Exception as error:  # noqa: BLE001  # so here: what was committed could not be told
            outcomes = [Outcome(error=error) for _ in group]
        for one, outcome in zip(group, outcomes, strict=True):
            if one.outcome.done():
                continue
            if outcome.error is None:
                one.outcome.set_result(outcome.result)
            else:
                one.outcome.set_exception(outcome.error)

    def _tell(self, group: Sequence[_Pending], outcomes: Sequence[Outcome]) -> None:
        if self._queue is not None:
            self._queue.apply(self._thread.take_changes())
        for one, outcome in zip(group, outcomes, strict=True):
            if outcome.error is None:
                one.on_commit(outcome.result)
