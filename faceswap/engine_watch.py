"""Watches over the engines: jobs are told when none can be asked, and end when none has been there for a day.

Prompts that were given up are stopped as soon as their ComfyUI can be asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from .comfy.backend import Backend
from .comfy.client import ComfyError
from .config import Timeouts
from .errors import JobFailure
from .store import Store, retry_writes

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the engines."""
MOST_TOLD = 200
"""Jobs that are told of an outage by an event; `/status` tells of it for all."""


class EngineWatch:
    """Knows whether any engine can be given work, and whom to tell when none can.

    `outage` is a sentence while there is none.
    """

    def __init__(
        self,
        store: Store,
        backends: Sequence[Backend],
        timeouts: Timeouts,
        fail: Callable[[str, JobFailure], Awaitable[None]],
    ) -> None:
        """`fail(prompt_id, failure)` ends a job."""
        self.outage: str | None = None
        self._store = store
        self._backends = backends
        self._timeouts = timeouts
        self._fail = fail
        self._told: set[str] = set()

    async def run(self) -> None:
        """Watch for as long as the service runs."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="watch over the engines")
            for backend in self._backends:
                tasks.create_task(self._stop_abandoned(backend), name=f"abandoned prompts of {backend.name}")

    async def _watch(self) -> None:
        well_at, well_since = time.monotonic(), datetime.now(UTC)
        while True:
            await asyncio.sleep(min(LOOK_S, self._timeouts.outage_s / 2, self._timeouts.gone_s / 4))
            if any(backend.healthy for backend in self._backends):
                well_at, well_since = time.monotonic(), datetime.now(UTC)
                await self._all_clear()
                continue
            gone_s = time.monotonic() - well_at
            if gone_s > self._timeouts.outage_s:
                await self._tell(well_since)
            if gone_s > self._timeouts.gone_s:
                await self._end_all()

    async def _tell(self, since: datetime) -> None:
        message = f"{self._trouble()} since {since:%Y-%m-%d %H:%M:%S} UTC; the job waits."
        if self.outage is None:
            log.warning("%s", message)
        self.outage = message
        for prompt_id in await self._waiting():
            if prompt_id not in self._told:
                self._told.add(prompt_id)
                await self._tell_job(prompt_id, message)

    async def _waiting(self) -> list[str]:
        return await retry_writes(partial(self._store.jobs_needing_engine, MOST_TOLD))

    def _trouble(self) -> str:
        if len(self._backends) == 1:
            return f"{self._backends[0].title} {self._backends[0].trouble}"
        return f"None of the {len(self._backends)} ComfyUI servers can be given work"

    async def _all_clear(self) -> None:
        if self.outage is None:
            return
        log.info("an engine can be given work again")
        self.outage = None
        told, self._told = self._told, set()
        for prompt_id in told:
            await self._tell_job(prompt_id, "ComfyUI answers again; the job goes on.")

    async def _tell_job(self, prompt_id: str, message: str) -> None:
        await retry_writes(partial(self._store.add_status, prompt_id, message))

    async def _end_all(self) -> None:
        hours = self._timeouts.gone_s / 3600
        message = f"No ComfyUI could be reached for {hours:.0f} hours; start it, then retry the job."
        while waiting := await self._waiting():
            for prompt_id in waiting:
                await self._fail(prompt_id, JobFailure("engine_unreachable", message))

    async def _stop_abandoned(self, backend: Backend) -> None:
        pause_s = self._timeouts.confirm_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._timeouts.reconcile_s
            if not backend.abandoned:
                continue
            try:
                gone = await backend.stop_abandoned()
            except ComfyError:
                continue
            pause_s = self._timeouts.confirm_s
            if gone:
                await retry_writes(partial(self._store.forget_abandoned, gone))
