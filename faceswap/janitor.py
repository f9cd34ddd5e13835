"""Erases what is past its time: inputs, results, and what crashes left behind."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from .config import Settings
from .files import ERASURE, UPLOAD, Files
from .store import JANITOR_LEASE, LOCAL_HOLDER, Store, StoreError, join_lease

log = logging.getLogger(__name__)

SWEEP_S = 30.0
"""Between two rounds."""
LEASE_S = 10.0
"""The time a round may take before another node may begin one, which does no harm beside it."""
BATCH = 100
ROWS = 1000
"""Rows of a job's record that are deleted at a time, with nobody else writing meanwhile."""


class Janitor:
    """Erases on time: first marked in the database, so that nobody is promised what is half gone."""

    def __init__(self, settings: Settings, store: Store, files: Files, holder: str = LOCAL_HOLDER) -> None:
        self._holder = holder
        self._settings = settings
        self._store = store
        self._files = files
        self._inputs_begun = set[str]()
        """Jobs whose inputs are to go and may still be there, because the files or the database could not be used."""
        self._results_begun: dict[str, str] = {}
        """The same of results."""

    async def run(self) -> None:
        """Sweep for as long as the service runs."""
        while True:
            try:
                await self.delete_lost()
                await self.delete_copies()
                await self.run_round()
                await self._store.shrink()
            except (OSError, StoreError) as error:
                log.warning("sweeping: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def delete_lost(self) -> None:
        """Erase what was set aside long ago: without the database, which a full disk may keep from being written."""
        before = datetime.now(UTC) - timedelta(seconds=self._settings.output_ttl_s)
        await self._files.delete_lost(before)

    async def delete_copies(self) -> None:
        """Delete this node's copies of the files of jobs that have ended, as they may have at another node.

        Of a job that was erased meanwhile, what this node stored too late goes too.
        """
        copied = await self._files.copied_jobs()
        if copied:
            unended = await self._store.unended()
            for prompt_id in copied - await self._store.known(copied):
                await self._files.delete_inputs(prompt_id)
                await self._files.delete_result(prompt_id, "")
            await self._files.delete_copies(copied - unended)

    async def run_round(self) -> None:
        """Sweep, unless another node does."""
        lease = await self._store.acquire_lease(JANITOR_LEASE, self._holder, LEASE_S)
        if lease is not None:
            try:
                await self.sweep()
                await self.clear_abandoned()
            finally:
                await self._store.release_lease(lease)

    async def sweep(self) -> None:
        """Erase everything that is due now."""
        now, settings = await self._store.now_ms(), self._settings
        for prompt_id in list(self._inputs_begun):
            await self._erase_inputs(prompt_id)
        for prompt_id, filename in list(self._results_begun.items()):
            await self._erase_result(prompt_id, filename)
        while due := await self._store.with_expired_inputs(now - settings.input_ttl_s * 1000, BATCH):
            for prompt_id in due:
                await self._erase_inputs(prompt_id)
        while results := await self._store.with_expired_results(now - settings.output_ttl_s * 1000, BATCH):
            for prompt_id, filename in results:
                await self._erase_result(prompt_id, filename)
        record_ttl_s = max(settings.record_ttl_s, settings.input_ttl_s, settings.output_ttl_s)
        while records := await self._store.with_expired_records(now - record_ttl_s * 1000, BATCH):
            for prompt_id, file in records:
                await self._erase_record(prompt_id, file)
        await self._store.forget_old_engine_files(now - record_ttl_s * 1000)
        await self._erase_uploads()

    async def _erase_uploads(self) -> None:
        """Erase resumable uploads that have expired, and bytes that were stored of one after its end."""
        while any([await self._erase_upload(upload_id) for upload_id in await self._store.expired_uploads(BATCH)]):
            pass
        before = datetime.now(UTC) - timedelta(seconds=self._settings.upload_ttl_s)
        async for old in self._files.list_parted(before):
            for upload_id in old - await self._store.known_uploads(old):
                await self._erase_upload(upload_id)

    async def _erase_upload(self, upload_id: str) -> bool:
        """Erase an upload; returns whether it could be, for else it is tried again in the next round."""
        try:
            await self._files.delete_parts(upload_id)
        except OSError as error:
            log.error("upload %s cannot be erased yet: %s", upload_id, error)
            return False
        await self._store.forget_upload(upload_id)
        return True

    async def _erase_inputs(self, prompt_id: str) -> None:
        """Erase the inputs of a job, unless it was retried; what fails is tried again in the next round."""
        self._inputs_begun.add(prompt_id)
        if await self._store.mark_inputs_erased(prompt_id) or not await self._store.with_inputs([prompt_id]):
            await self._files.delete_inputs(prompt_id)
        self._inputs_begun.discard(prompt_id)

    async def _erase_result(self, prompt_id: str, filename: str) -> None:
        """Erase the result of a job; what fails is tried again in the next round."""
        self._results_begun[prompt_id] = filename
        await self._store.mark_result_erased(prompt_id)
        await self._files.delete_result(prompt_id, filename)
        del self._results_begun[prompt_id]

    async def _erase_record(self, prompt_id: str, result_file: str | None) -> None:
        """Erase the record of a job, a part at a time; nothing finds its files any more, should there be any left."""
        await self._files.delete_inputs(prompt_id)
        if result_file is not None:
            await self._files.delete_result(prompt_id, result_file)
        while not await self._store.delete_record(prompt_id, ROWS):
            pass

    async def clear_abandoned(self) -> None:
        """Erase what nodes that do not come back were taking in or erasing."""
        if not self._files.is_shared:  # the next start does
            return
        uploads = await self._abandoned(UPLOAD)
        known = await self._store.known(uploads)
        for prompt_id in uploads:
            await (self._files.accept_upload if prompt_id in known else self._files.delete_upload)(prompt_id)
        erasures = await self._abandoned(ERASURE)
        not_begun = await self._store.with_inputs(erasures)
        for prompt_id in erasures:
            if prompt_id not in not_begun:
                await self._files.delete_inputs(prompt_id)
                await self._files.delete_result(prompt_id, "")
                await self._store.erase(prompt_id)
            await self._files.unmark_erasure(prompt_id)

    async def _abandoned(self, mark: str) -> set[str]:
        marked = await self._files.list_marked(mark)
        return {prompt_id for prompt_id in marked if await self._files.is_abandoned(prompt_id, mark)}

    async def clear_debris(self) -> None:
        """Put in order what a crash left. Called once, before the first request. Raises `OSError`.

        Erased is what was being erased or taken in, and results that were never committed. What the database does not
        know may belong to a newer one: it is set aside.
        """
        await self._files.delete_looked_at()
        await self._clear_scratch()
        await self._clear_uploads()
        unknown, results = await self._clear_inputs(), await self._clear_results()
        # Another node may have begun an upload meanwhile, and may have made it a job.
        unknown -= await self._files.list_marked(UPLOAD)
        unknown -= await self._store.known(unknown)
        await self._set_aside(unknown, results)
        await self._finish_erasures()

    async def _finish_erasures(self) -> None:
        """Delete the records of jobs that were being erased for good; what was left of their files is gone."""
        found = await self._files.list_marked(ERASURE)
        marked = {prompt_id for prompt_id in found if await self._files.is_own_mark(prompt_id, ERASURE)}
        for prompt_id in marked - await self._store.with_inputs(marked):  # of those that have them, none was begun
            await self._store.erase(prompt_id)
        for prompt_id in marked:
            await self._files.unmark_erasure(prompt_id)

    async def _clear_scratch(self) -> None:
        """Delete what was unfinished, and all of it of jobs that had just succeeded."""
        scratch = await self._files.delete_unfinished()
        for prompt_id in await self._store.succeeded(scratch):
            await self._files.delete_scratch(prompt_id)

    async def _clear_uploads(self) -> None:
        """Erase uploads that did not become a job; of those that did, only the mark was left."""
        marked = await self._files.list_marked(UPLOAD)
        known = await self._store.known(marked)
        for prompt_id in marked:
            if prompt_id in known:
                await self._files.accept_upload(prompt_id)
            elif await self._files.is_own_mark(prompt_id, UPLOAD):
                await self._files.delete_upload(prompt_id)

    async def _clear_inputs(self) -> set[str]:
        """Erase the inputs that were to go; returns the ids of the jobs that the database does not know."""
        unknown = set[str]()
        async for folders in self._files.list_jobs():
            known = await self._store.known(folders)
            for prompt_id in known - await self._store.with_inputs(folders):
                try:
                    await self._files.delete_inputs(prompt_id)
                except OSError as error:
                    log.error("inputs of job %s cannot be erased yet: %s", prompt_id, error)
                    self._inputs_begun.add(prompt_id)
            unknown |= folders - known
        return unknown

    async def _clear_results(self) -> set[str]:
        """Erase results that were to go or never committed; returns those that the database does not know."""
        unknown = set[str]()
        async for results in self._files.list_results():
            if self._files.is_shared:
                known = {prompt_id: prompt_id for prompt_id in await self._store.known(results)}
                kept = await self._store.with_results(results)
            else:
                known = await self._store.known_results(results)
                kept = await self._store.unexpired_results(results)
            for filename in known.keys() - kept:
                # Under the lease: another node may be about to end the job with this file.
                lease = await self._store.acquire_lease(join_lease(known[filename]), self._holder, LEASE_S)
                if lease is not None:
                    await self._files.discard_result(known[filename], lease.epoch, filename)
                    await self._store.release_lease(lease)
            unknown |= results - known.keys()
        return unknown

    async def _set_aside(self, prompt_ids: set[str], filenames: set[str]) -> None:
        moved = await self._files.move_to_lost(prompt_ids, filenames, datetime.now(UTC))
        if moved:
            log.warning(
                "the database knows nothing of %d files and folders in the data folder; is it the right one?"
                " They are in %s now and will be erased in %d s",
                len(moved),
                self._files.lost,
                self._settings.output_ttl_s,
            )
