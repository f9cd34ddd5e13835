"""Tells watchers of running jobs: their steps, and four times a second their progress and the newest preview."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from . import events
from .clock import monotonic
from .events import Payload
from .files import Files
from .jobs import Job
from .progress import JobProgress, Report
from .store import Store, StoreError, retry_writes

log = logging.getLogger(__name__)

TICK_S = 0.25
"""Between two reports: at most four progress events a second."""
PAUSE_S = 2.0
"""Before the next report, when one could not be stored."""
COUNT_S = 1.0
"""Between two looks at the segments that other nodes have done."""
PREVIEW_S = 1.0
"""Between two previews of a job."""
PREVIEW_TIMEOUT_S = 5.0
"""The time for previews to be kept where the other nodes find them; they are dropped after it."""


@dataclass
class Reporter:
    """A running job: how far it is, and how much of that was told."""

    progress: JobProgress
    start: float
    """The percentage at which it was taken up."""
    told: float = -1.0
    previewed_at: float = 0.0
    preview_is_new: bool = False
    unkept: bytes | None = None
    """The newest preview, while other nodes could not find it yet."""


class ProgressReporter:
    """Tells the watchers of every running job."""

    def __init__(self, store: Store, files: Files) -> None:
        self._store = store
        self._files = files
        self._reporters: dict[str, Reporter] = {}
        self._previews: dict[str, bytes] = {}

    @property
    def prompt_ids(self) -> set[str]:
        """The jobs that are reported of."""
        return set(self._reporters)

    def progress(self, job: Job) -> JobProgress:
        """Return the progress of a running job, taken up where the database has it."""
        reporter = self._reporters.get(job.prompt_id)
        if reporter is None:
            done = job.total_frames * job.segments_done // job.segments_total
            progress = JobProgress(job.total_frames, done, job.percentage, monotonic())
            reporter = self._reporters[job.prompt_id] = Reporter(progress, job.percentage)
        return reporter.progress

    async def preview(self, prompt_id: str) -> bytes | None:
        """Return the newest preview of a job, JPEG; None when there is none."""
        image = self._previews.get(prompt_id)
        return await self._files.preview(prompt_id) if image is None else image

    def take_preview(self, prompt_id: str, image: bytes) -> None:
        """Keep a picture that the engine has made, for the next report."""
        reporter = self._reporters.get(prompt_id)
        if reporter is None:
            return
        if self._files.is_shared:
            reporter.unkept = image
        else:
            self._previews[prompt_id] = image
            reporter.preview_is_new = True

    def close(self, prompt_id: str) -> None:
        """Report no more of a job, which is about to end."""
        self._reporters.pop(prompt_id, None)
        self._previews.pop(prompt_id, None)

    async def add_event(self, prompt_id: str, payload: Payload, step: str | None = None) -> None:
        """Store and publish an event, as often as it takes a full disk to be freed."""
        await retry_writes(partial(self._store.add_event, prompt_id, payload, step))

    async def add_status(self, prompt_id: str, message: str, step: str | None = None) -> None:
        """Store and publish a `status` event, as often as it takes a full disk to be freed."""
        await retry_writes(partial(self._store.add_status, prompt_id, message, step))

    async def run(self) -> None:
        """Report for as long as the service runs."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report_regularly(), name="reports of progress")
            if self._files.is_shared:
                tasks.create_task(self._keep_previews(), name="previews for other nodes")
            if self._store.is_shared:
                tasks.create_task(self._count_all(), name="progress of other nodes")

    async def _count_all(self) -> None:
        """Count what other nodes have done of the jobs that are reported here."""
        while True:
            await asyncio.sleep(COUNT_S)
            with suppress(StoreError):
                for prompt_id, reporter in list(self._reporters.items()):
                    progress = reporter.progress
                    progress.count_done(await self._store.done_frames(prompt_id, progress.running))

    async def _keep_previews(self) -> None:
        """Keep previews where other nodes find them, and only then have them told."""
        while True:
            await asyncio.sleep(PREVIEW_S)
            unkept = {prompt_id: reporter for prompt_id, reporter in self._reporters.items() if reporter.unkept}
            with suppress(TimeoutError):
                async with asyncio.timeout(PREVIEW_TIMEOUT_S):
                    await asyncio.gather(*(self._keep_preview(*item) for item in unkept.items()))

    async def _keep_preview(self, prompt_id: str, reporter: Reporter) -> None:
        image, reporter.unkept = reporter.unkept, None
        assert image is not None
        try:
            await self._files.put_preview(prompt_id, image)
            reporter.preview_is_new = True
        except OSError as error:
            log.info("job %s: a preview could not be kept: %s", prompt_id, error)
        if self._reporters.get(prompt_id) is not reporter:  # its job has ended, and may have been erased, meanwhile
            with suppress(OSError):  # it goes later then
                await self._files.delete_preview(prompt_id)

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._report_all()
            except StoreError as error:
                log.warning("progress cannot be stored: %s", error)
                await asyncio.sleep(PAUSE_S)

    async def _report_all(self) -> None:
        """Report all jobs at once: stored first, in one commit, so that no restart takes back what was told."""
        now = monotonic()
        reports = {prompt_id: _report(reporter, now) for prompt_id, reporter in self._reporters.items()}
        news = {
            prompt_id: report
            for prompt_id, report in reports.items()
            if report.percentage > self._reporters[prompt_id].told and self._reporters[prompt_id].progress.moving
        }
        previewed = [
            prompt_id
            for prompt_id, reporter in self._reporters.items()
            if reporter.preview_is_new and now - reporter.previewed_at >= PREVIEW_S
        ]
        if not (news or previewed):
            return
        previews = {prompt_id: events.preview(prompt_id, reports[prompt_id].current) for prompt_id in previewed}
        for prompt_id in previewed:
            reporter = self._reporters[prompt_id]
            reporter.preview_is_new, reporter.previewed_at = False, now
        await self._store.record_progress(news, previews)
        for prompt_id, report in news.items():
            if prompt_id in self._reporters:
                self._reporters[prompt_id].told = report.percentage


def _report(reporter: Reporter, now: float) -> Report:
    """Return how far a job is; the first time where it starts, however fast the first frames were."""
    report = reporter.progress.report(now)
    if reporter.told < 0:
        report = replace(report, percentage=reporter.start, current=int(reporter.start / 100 * report.total))
    return report
