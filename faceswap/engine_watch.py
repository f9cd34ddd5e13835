"""The watch over all engines: jobs are told when none answers, and end when none has answered for a day."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from .clock import monotonic
from .comfy.backend import Backend
from .comfy.client import ComfyError
from .config import Timeouts
from .errors import JobFailure
from .store import EngineFile, Store, StoreError, retry_writes

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Pause between two looks at the engines."""
EMPTY_S = 5.0
"""Between two looks for files of erased jobs at an engine that is not ours."""
EMPTY_BATCH = 100
WATCH_LEASE = "engines"
"""The lease under which one of several nodes tells the jobs."""
MOST_TOLD = 200
"""Jobs that get an event for an outage, at most; `/status` reports it for all jobs."""


class EngineWatch:
    """The state of the engines together, and the jobs to tell when no engine can be given work.

    `outage` is a sentence while that lasts.
    """

    def __init__(self, store: Store, backends: Sequence[Backend], timeouts: Timeouts) -> None:
        self.outage: str | None = None
        self.pause_s = min(LOOK_S, timeouts.outage_s / 2, timeouts.gone_s / 4)
        """Pause between two looks, in seconds."""
        self._store = store
        self._backends = backends
        self._timeouts = timeouts
        self._told: set[str] = set()
        self._well_at, self._well_since = monotonic(), datetime.now(UTC)

    async def look(self, *, elsewhere: bool | None = False, tells: bool = True) -> JobFailure | None:
        """Look at the engines, and tell the jobs that wait for one of any change.

        Return the failure that these jobs are to end with when none has been there for too long. `elsewhere`: another
        node may have one that can be given work; None while nobody can tell. Of several nodes one `tells` the jobs.
        """
        if elsewhere or any(backend.healthy for backend in self._backends):
            self._well_at, self._well_since = monotonic(), datetime.now(UTC)
            await self._all_clear()
            return None
        if elsewhere is None:  # what was told stands, and nothing else is told
            if self.outage is None:
                self._well_at, self._well_since = monotonic(), datetime.now(UTC)
            return None
        gone_s = monotonic() - self._well_at
        if gone_s > self._timeouts.outage_s:
            self._notice(self._well_since)
            if tells:
                await self._tell()
        if not tells or gone_s <= self._timeouts.gone_s:
            return None
        hours = self._timeouts.gone_s / 3600
        message = f"No ComfyUI could be reached for {hours:.0f} hours; start it, then retry the job."
        return JobFailure("engine_unreachable", message)

    async def waiting(self) -> list[str]:
        """Return the ids of jobs that wait for an engine, some of them when there are many."""
        return await retry_writes(partial(self._store.jobs_needing_engine, MOST_TOLD))

    def _notice(self, since: datetime) -> None:
        message = f"{self._trouble()} since {since:%Y-%m-%d %H:%M:%S} UTC; the job waits."
        if self.outage is None:
            log.warning("%s", message)
        self.outage = message

    async def _tell(self) -> None:
        assert self.outage is not None
        for prompt_id in await self.waiting():
            if prompt_id not in self._told:
                self._told.add(prompt_id)
                await self._tell_job(prompt_id, self.outage)

    def _trouble(self) -> str:
        if len(self._backends) == 1:
            return f"{self._backends[0].title} {self._backends[0].trouble}"
        kind = "embedded engines" if any(backend.is_embedded for backend in self._backends) else "ComfyUI servers"
        return f"None of the {len(self._backends)} {kind} can be given work"

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


async def empty_files(store: Store, backend: Backend) -> None:
    """Empty what a backend has of jobs that were erased, or whose inputs were, for as long as the service runs."""
    while True:
        await asyncio.sleep(EMPTY_S)
        try:
            files = await store.engine_files_to_empty(backend.name, EMPTY_BATCH)
            while files:
                await _empty(backend, files)
                if backend.idle:  # it keeps what it last read until the next prompt comes
                    await backend.client.free(models=False)
                if not backend.abandoned:  # they may make files yet: all is emptied again until they have ended
                    await store.forget_engine_files(backend.name, files)
                files = await store.engine_files_to_empty(backend.name, EMPTY_BATCH, files[-1])
        except ComfyError:
            continue  # until it can be asked
        except StoreError as error:
            if not error.transient:
                raise


async def _empty(backend: Backend, files: Sequence[EngineFile]) -> None:
    """Empty files at a backend. Raises the `ComfyError` that may pass."""
    for file in files:
        try:
            await backend.client.empty(file.kind, file.subfolder, file.name)
        except ComfyError as error:
            if error.transient:
                raise
            log.warning("%s keeps %s/%s of a job that was erased: %s", backend.name, file.subfolder, file.name, error)


async def stop_abandoned_prompts(store: Store, backend: Backend) -> None:
    """Stop the prompts that were given up at a backend as soon as it can be asked, for as long as the service runs."""
    pause_s = backend.timeouts.confirm_s
    while True:
        await asyncio.sleep(pause_s)
        pause_s = backend.timeouts.reconcile_s
        if not backend.abandoned:
            continue
        try:
            gone = await backend.stop_abandoned()
        except ComfyError:
            continue
        pause_s = backend.timeouts.confirm_s
        if gone:
            await retry_writes(partial(store.forget_abandoned, gone))
