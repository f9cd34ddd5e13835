"""The erasure of jobs, and of what this node still has of jobs that other nodes erased."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .comfy.in_flight import Attempts
from .errors import Unavailable
from .feed import Feed, Signal
from .files import Files
from .jobs import Job
from .leaseholder import Leaseholder
from .recovery import DISK_PAUSE_S
from .store import LeaseLost, Store, StoreError, join_lease

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""Between two looks whether other nodes still work on a job."""
WAIT_S = 60.0
"""The time that a request waits for a job to be erased, which goes on without it."""


class Erasure:
    """Erases jobs: record, inputs and outputs, once no engine works on them."""

    def __init__(
        self,
        store: Store,
        files: Files,
        feed: Feed,
        leases: Leaseholder,
        attempts: Attempts,
        tasks: asyncio.TaskGroup,
        *,
        cancel: Callable[[str], None],
        forget: Callable[[str], None],
    ) -> None:
        """`cancel` stops the prompts of a job everywhere; `forget` drops what is kept of it in memory."""
        self.erased_elsewhere: set[str] = set()
        """The jobs that other nodes erased, whose files here are still to be deleted."""
        self._store = store
        self._files = files
        self._feed = feed
        self._leases = leases
        self._attempts = attempts
        self._tasks = tasks
        self._cancel = cancel
        self._forget = forget
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._worked_on: set[str] = set()

    async def erase(self, job: Job) -> None:
        """Erase a job that has ended, or was asked to.

        Raises `Unavailable` where another node has not let go of it yet: it is erased as soon as that has. So too where
        this one stops meanwhile.
        """
        if not self._store.is_shared:
            await self._begin(job)
            await self._finish(job)
            return
        task = self._under_way.get(job.prompt_id)
        if task is None:
            task = self._begin_among_nodes(job)
        done, _ = await asyncio.wait({task}, timeout=WAIT_S)
        if not done:
            message = "The job is still being stopped; it is erased as soon as it is."
            raise Unavailable(message, code="still_stopping", retry_after=10)
        if task.cancelled():
            raise _stopping()
        task.result()

    def _begin_among_nodes(self, job: Job) -> asyncio.Task[None]:
        """Start the task that erases a job. Raises `Unavailable` once this node takes no more tasks."""
        work = self._erase_among_nodes(job)
        try:
            task = self._tasks.create_task(work, name=f"erase {job.prompt_id}")
        except RuntimeError as error:
            work.close()
            raise _stopping() from error
        self._under_way[job.prompt_id] = task
        task.add_done_callback(lambda _: self._under_way.pop(job.prompt_id))
        return task

    async def _erase_among_nodes(self, job: Job) -> None:
        """Erase a job once no node works on it; the bound of that is theirs. Try again what may pass by itself."""
        while True:
            try:
                await self._begin(job)
                while await self._store.is_submitted(job.prompt_id):  # noqa: ASYNC110 - at other nodes
                    await asyncio.sleep(LOOK_S)
                async with self._leases.hold(join_lease(job.prompt_id)):
                    await self._finish(job)
                self._feed.send(Signal.ERASED, job.prompt_id)
                return
            except (LeaseLost, OSError) as error:
                log.warning("job %s cannot be erased yet: %s", job.prompt_id, error)
            except StoreError as error:
                if not error.transient:
                    raise
                log.warning("job %s cannot be erased yet: %s", job.prompt_id, error)
            await asyncio.sleep(DISK_PAUSE_S)

    async def _begin(self, job: Job) -> None:
        await self._attempts_ended(job.prompt_id)
        await self._files.mark_erasure(job.prompt_id)
        await self._store.begin_erasure(job.prompt_id)
        # A retry may have come in between.
        self._cancel(job.prompt_id)
        await self._attempts_ended(job.prompt_id)

    async def _finish(self, job: Job) -> None:
        self._forget(job.prompt_id)
        await self._files.delete_inputs(job.prompt_id)
        await self._files.delete_result(job.prompt_id, job.stored_result)
        await self._store.erase(job.prompt_id)
        await self._files.unmark_erasure(job.prompt_id)

    async def _attempts_ended(self, prompt_id: str) -> None:
        while tasks := list(self._attempts.get(prompt_id, {}).values()):
            await asyncio.wait(tasks)

    def look_at(self, prompt_id: str) -> None:
        """Have a job looked at whose work here has ended in any way: another node may have erased it meanwhile.

        This node may have been frozen or cut off then, and have written files of it after that.
        """
        if self._store.is_shared:
            self._worked_on.add(prompt_id)

    async def delete_erased(self) -> None:
        """Delete what this node has of jobs that other nodes erased."""
        if self._worked_on:
            worked_on = set(self._worked_on)
            self.erased_elsewhere |= worked_on - await self._store.known(worked_on)
            self._worked_on -= worked_on
        for prompt_id in list(self.erased_elsewhere):
            await self._files.delete_inputs(prompt_id)
            if self._files.is_shared:  # results are found by the id of their job
                await self._files.delete_result(prompt_id, "")
            self.erased_elsewhere.discard(prompt_id)


def _stopping() -> Unavailable:
    return Unavailable("The service is stopping; delete the job again.", code="stopping", retry_after=10)
