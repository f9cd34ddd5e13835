"""Holds leases for this node: waits for one, renews it, and cancels what is done under one that was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from .clock import monotonic
from .metrics import LEASES_LOST
from .store import Lease, LeaseLost, Store, StoreError, retry_writes

log = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals within the time of a lease."""
ASK_S = 1.0
"""Between two tries to take a lease that another holds, at most."""
RELEASE_S = 2.0
"""The time for a lease to be released by a node that stops; it runs out soon enough besides."""


class Held:
    """A lease that this node holds until the time `until`, renewals apart, unless it is `lost`."""

    def __init__(self, lease: Lease, until: float) -> None:
        self.lease = lease
        self.until = until
        self.lost = False
        self.given_back = False
        self.scope: asyncio.Timeout | None = None

    @property
    def is_sure(self) -> bool:
        """True while nobody else can have it yet. A node that was frozen learns by its clock alone that others may."""
        return not self.lost and monotonic() < self.until

    @property
    def ending(self) -> bool:
        """True once nothing new is to be begun under it."""
        return self.lost or self.given_back or not self._is_open

    @property
    def _is_open(self) -> bool:
        return self.scope is not None and not self.scope.expired()

    def keep(self, until: float) -> None:
        """Go on until a later time, for which others wait."""
        if not self.ending:
            self.until = until
            self._end_at(until)

    def lose(self) -> None:
        """Cancel what is done under the lease: somebody else may do it now."""
        if self._is_open:
            self.lost = True
            LEASES_LOST.inc()
            self._end_at(monotonic())

    def give_back(self) -> None:
        """Cancel what is done under the lease, then let somebody else have it."""
        if self._is_open:
            self.given_back = True
            self._end_at(monotonic())

    def _end_at(self, when: float) -> None:
        assert self.scope is not None
        self.scope.reschedule(when)


class Leaseholder:
    """A node as the other nodes see it: a name that leases are held under."""

    def __init__(self, store: Store, name: str, lease_s: float) -> None:
        self._store = store
        self._name = name
        self._lease_s = lease_s

    @asynccontextmanager
    async def hold(self, name: str, hesitation_s: Callable[[], float] = lambda: 0.0) -> AsyncIterator[Held]:
        """Wait for a lease and hold it while the body runs, which is cancelled when the lease is lost.

        Raises `LeaseLost` then. Before each try to take it the other nodes get `hesitation_s()` to be quicker.
        """
        held = await self._acquire(name, hesitation_s)
        renewal = asyncio.create_task(self._renew(held), name=f"renewal of {name}")
        try:
            async with asyncio.timeout_at(held.until) as held.scope:
                yield held
        except TimeoutError:
            if held.scope is None or not held.scope.expired():
                raise
            held.lost = held.lost or not held.given_back
        except asyncio.CancelledError:
            held.scope = None
            if self._store.is_shared:  # this node stops: the others need not wait until the lease runs out
                await self._release_at_stop(held.lease)
            raise
        finally:
            held.scope = None
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
        if held.lost:
            log.warning("the lease %s was lost", name)
            raise LeaseLost(name)
        await retry_writes(partial(self._store.release_lease, held.lease))

    async def _release_at_stop(self, lease: Lease) -> None:
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                await self._store.release_lease(lease)

    async def _acquire(self, name: str, hesitation_s: Callable[[], float]) -> Held:
        while True:
            await asyncio.sleep(hesitation_s())
            held = await retry_writes(partial(self._ask_for, name))
            if held is not None:
                return held
            await asyncio.sleep(min(self._lease_s / RENEWALS, ASK_S))

    async def _ask_for(self, name: str) -> Held | None:
        until = monotonic() + self._lease_s
        lease = await self._store.acquire_lease(name, self._name, self._lease_s)
        return None if lease is None else Held(lease, until)

    async def _renew(self, held: Held) -> None:
        """Renew a lease until it is lost."""
        try:
            renewed = True
            while renewed:
                await asyncio.sleep(self._lease_s / RENEWALS)
                renewed = await retry_writes(partial(self._ask_for_more, held))
        except StoreError:
            log.exception("the lease %s cannot be renewed", held.lease.name)
        finally:
            held.lose()

    async def _ask_for_more(self, held: Held) -> bool:
        until = monotonic() + self._lease_s
        renewed = await self._store.renew_lease(held.lease, self._lease_s)
        if renewed:
            held.keep(until)
        return renewed
