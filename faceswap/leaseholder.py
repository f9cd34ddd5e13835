"""Holds leases for this node: waits for one, renews it, and cancels what is done under one that was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from .clock import monotonic
from .store import Lease, LeaseLost, Store, StoreError, retry_writes

log = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals within the time of a lease."""


class Held:
    """A lease that this node holds until the time `until`, renewals apart, unless it is `lost`."""

    def __init__(self, lease: Lease, until: float) -> None:
        self.lease = lease
        self.until = until
        self.lost = False
        self.scope: asyncio.Timeout | None = None

    @property
    def is_sure(self) -> bool:
        """True while nobody else can have it yet. A node that was frozen learns by its clock alone that others may."""
        return not self.lost and monotonic() < self.until

    def lose(self) -> None:
        """Cancel what is done under the lease: somebody else may do it now."""
        if self.lost or self.scope is None:
            return
        self.lost = True
        self.scope.reschedule(monotonic())


class Leaseholder:
    """A node as the other nodes see it: a name that leases are held under."""

    def __init__(self, store: Store, name: str, lease_s: float) -> None:
        self._store = store
        self._name = name
        self._lease_s = lease_s

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[Held]:
        """Wait for a lease and hold it while the body runs, which is cancelled when the lease is lost.

        Raises `LeaseLost` then.
        """
        held = await self._acquire(name)
        renewal = asyncio.create_task(self._renew(held), name=f"renewal of {name}")
        try:
            async with asyncio.timeout(None) as held.scope:
                yield held
        except TimeoutError:
            if not held.lost:
                raise
        finally:
            held.scope = None
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
        if held.lost:
            log.warning("the lease %s was lost", name)
            raise LeaseLost(name)
        await retry_writes(partial(self._store.release_lease, held.lease))

    async def _acquire(self, name: str) -> Held:
        while True:
            held = await retry_writes(partial(self._ask_for, name))
            if held is not None:
                return held
            await asyncio.sleep(self._lease_s / RENEWALS)

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
            held.until = until
        return renewed
