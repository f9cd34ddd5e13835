"""The look at what other nodes have asked for: it finds what no note has told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from .comfy.backend import Backend
from .comfy.in_flight import Attempts
from .erasure import Erasure
from .held_backends import HeldBackends
from .jobs import Segment
from .store import Store, StoreError

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at what other nodes have asked for, when nothing tells of it."""


class OtherNodes:
    """Does at this node what the others have asked for, at once when they tell of it, else at the next look."""

    def __init__(
        self,
        store: Store,
        held: HeldBackends,
        attempts: Attempts,
        erasure: Erasure,
        take_up: Callable[[Iterable[Segment], Backend], None],
    ) -> None:
        """`take_up` goes on with attempts that a backend may know already."""
        self._store = store
        self._held = held
        self._attempts = attempts
        self._erasure = erasure
        self._take_up = take_up
        self._wanted = asyncio.Event()
        self._unclaimed: set[Segment] = set()

    def look_soon(self) -> None:
        """Have the next look at once."""
        self._wanted.set()

    async def run(self) -> None:
        """Look for as long as the service runs."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._compare_attempts()
                await self._erasure.delete_erased()
            except OSError as error:
                log.warning("what is left here of jobs that other nodes erased cannot be deleted yet: %s", error)
            except StoreError as error:  # the heartbeat tells of a database that is away
                if not error.transient:
                    raise
            self._held.give_back()

    async def _compare_attempts(self) -> None:
        """Stop the attempts that the database no longer has, and begin those that only the database has.

        The answer to a claim may have been lost on its way, and a job may have ended at another node.
        """
        ours = [prompt for backend in self._held for prompt in list(backend.in_flight.values())]
        collecting = set(self._attempts)
        submitted = {segment.attempt_key: segment for segment in await self._store.submitted()}
        stopped = await self._store.to_be_stopped(collecting)
        for prompt in ours:
            if prompt.segment.attempt_key not in submitted:
                prompt.stop()
        for prompt_id in stopped:
            for prompt in self._attempts.get(prompt_id, ()):
                prompt.stop()
        known = {prompt.segment.attempt_key for attempts in self._attempts.values() for prompt in attempts}
        unclaimed = {segment for key, segment in submitted.items() if key not in known}
        seen_twice = unclaimed & self._unclaimed  # no claim is under way
        for backend in self._held:
            self._take_up((segment for segment in seen_twice if self._is_for(segment, backend)), backend)
        self._unclaimed = unclaimed

    def _is_for(self, segment: Segment, backend: Backend) -> bool:
        """Return whether a segment was submitted to a backend under the lease that this node holds."""
        ours = self._held.get(backend)
        return ours is not None and (segment.backend, segment.epoch) == (backend.name, ours.held.lease.epoch)
