"""The backends that this node holds the leases of, and those that other nodes should have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .clock import monotonic
from .comfy.backend import Backend
from .config import Timeouts
from .leaseholder import Held
from .node import Node

log = logging.getLogger(__name__)


@dataclass
class HeldBackend:
    """A backend's lease, and the tasks that are done under it."""

    held: Held
    tasks: asyncio.TaskGroup
    leaving: bool = False
    """True when it is given no more work, to be given back to a node that holds fewer."""
    reached_at: float = field(default_factory=monotonic)
    """The time at which this node could last reach it, or began to hold it."""


class HeldBackends:
    """The backends that this node holds, which it tells the others."""

    def __init__(self, node: Node, timeouts: Timeouts) -> None:
        self._node = node
        self._unreachable_s = timeouts.unreachable_s
        self._held: dict[Backend, HeldBackend] = {}

    def __iter__(self) -> Iterator[Backend]:
        return iter(tuple(self._held))

    def get(self, backend: Backend) -> HeldBackend | None:
        """Return what belongs to a backend; None when it is not held."""
        return self._held.get(backend)

    @property
    def sure(self) -> int:
        """The number of those that nobody else can have yet."""
        return sum(ours.held.is_sure for ours in self._held.values())

    @asynccontextmanager
    async def hold(self, backend: Backend, held: Held) -> AsyncIterator[asyncio.TaskGroup]:
        """Count a backend among those that are held for as long as the tasks run that are started here."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._held[backend] = HeldBackend(held, tasks)
                self._tell()
                yield tasks
        finally:
            self._held.pop(backend, None)
            self._tell()

    def _tell(self) -> None:
        self._node.held = frozenset(backend.name for backend in self._held)

    def give_back(self) -> None:
        """Give back what other nodes had better hold."""
        self._give_back_unreachable()
        self._give_back_surplus()

    def _give_back_unreachable(self) -> None:
        """Give back what this node cannot reach and another node names: that one may."""
        named_elsewhere = self._node.named_elsewhere()
        for backend, ours in self._held.items():
            if backend.in_reach:
                ours.reached_at = monotonic()
            elif monotonic() - ours.reached_at > self._unreachable_s and backend.name in named_elsewhere:
                log.warning("%s cannot be reached from this node and is left to one that may", backend.name)
                ours.held.give_back()

    def _give_back_surplus(self) -> None:
        """Give a backend back to a node that holds fewer: one at a time, once it is at rest."""
        leaving = [backend for backend, ours in self._held.items() if ours.leaving]
        if not leaving:
            surplus = [backend for backend in self._held if self._node.may_give_back(backend.name)]
            leaving = sorted(surplus, key=lambda backend: not backend.idle)[:1]
        for backend in leaving:
            ours = self._held[backend]
            ours.leaving = self._node.may_give_back(backend.name)
            if ours.leaving and backend.idle:
                log.info("%s is left to a node that holds fewer", backend.name)
                ours.held.give_back()
