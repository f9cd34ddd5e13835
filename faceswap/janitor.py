"""What is past its time goes: inputs, results, and what crashes left behind."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from .config import Settings
from .folders import Folders
from .store import Store, now_ms

log = logging.getLogger(__name__)

SWEEP_S = 30.0
BATCH = 100


class Janitor:
    """Erases on time. What goes is marked in the database first, so that nobody is promised what is half gone."""

    def __init__(self, settings: Settings, store: Store, folders: Folders) -> None:
        self._settings = settings
        self._store = store
        self._folders = folders

    async def run(self) -> None:
        """Sweep for as long as the service runs."""
        while True:
            try:
                await self.sweep()
            except (OSError, sqlite3.Error) as error:
                log.warning("sweeping: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Erase everything that is due now."""
        now = now_ms()
        while due := await self._store.with_expired_inputs(now - self._settings.input_ttl_s * 1000, BATCH):
            for prompt_id in due:
                if await self._store.inputs_erased(prompt_id):
                    await asyncio.to_thread(self._folders.erase_inputs, prompt_id)
        while results := await self._store.with_expired_results(now - self._settings.output_ttl_s * 1000, BATCH):
            for prompt_id, filename in results:
                await self._store.result_erased(prompt_id)
                await asyncio.to_thread(self._folders.erase_result, filename)

    async def clear_debris(self) -> None:
        """Erase what belongs to no job: uploads that a crash cut off, results that were never committed.

        So too what a crash left of an erasure. Called once, before the first request.
        """
        folders = set(await asyncio.to_thread(lambda: set(self._folders.job_folders())))
        for prompt_id in folders - await self._store.with_inputs(folders):
            await asyncio.to_thread(self._folders.erase_inputs, prompt_id)
        files = set(await asyncio.to_thread(lambda: set(self._folders.results())))
        for filename in files - await self._store.unexpired_results(files):
            await asyncio.to_thread(self._folders.erase_result, filename)
