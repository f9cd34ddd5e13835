"""What is told of running jobs: their steps, and four times a second their progress and the newest preview."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from .jobs import Job
from .progress import JobProgress, Report
from .store import Store, retry_writes

log = logging.getLogger(__name__)

TICK_S = 0.25
"""At most four progress events a second."""
KEEP_EVERY = 4
"""Of these one is kept in the database: one a second."""
PREVIEW_S = 1.0


@dataclass
class Reporter:
    """One running job: how far it is, and what was told of that."""

    progress: JobProgress
    start: float
    """The percentage at which it was taken up."""
    ticks: int = 0
    told: float = -1.0
    previewed_at: float = 0.0
    preview_is_new: bool = False


class Reports:
    """Tells the watchers of every running job."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reporters: dict[str, Reporter] = {}
        self._previews: dict[str, bytes] = {}

    def progress(self, job: Job) -> JobProgress:
        """The progress of a running job, taken up where the database has it."""
        reporter = self._reporters.get(job.prompt_id)
        if reporter is None:
            done = job.total_frames * job.segments_done // job.segments_total
            progress = JobProgress(job.total_frames, done, job.percentage, time.monotonic())
            reporter = self._reporters[job.prompt_id] = Reporter(progress, job.percentage)
        return reporter.progress

    def preview(self, prompt_id: str) -> bytes | None:
        """The newest preview of a job, JPEG."""
        return self._previews.get(prompt_id)

    def take_preview(self, prompt_id: str, image: bytes) -> None:
        """The engine has made a picture."""
        reporter = self._reporters.get(prompt_id)
        if reporter is not None:
            self._previews[prompt_id] = image
            reporter.preview_is_new = True

    def close(self, prompt_id: str) -> None:
        """The job is about to end: no more of its progress is told."""
        self._reporters.pop(prompt_id, None)
        self._previews.pop(prompt_id, None)

    async def tell(self, prompt_id: str, type: str, data: Mapping[str, object], step: str | None = None) -> None:
        """Store and publish an event, as often as it takes a full disk to be freed."""
        await retry_writes(partial(self._store.tell, prompt_id, type, data, step))

    async def tell_status(self, prompt_id: str, message: str, step: str | None = None) -> None:
        """Store and publish a `status` event, as often as it takes a full disk to be freed."""
        await retry_writes(partial(self._store.tell_status, prompt_id, message, step))

    async def run(self) -> None:
        """Report for as long as the service runs."""
        while True:
            await asyncio.sleep(TICK_S)
            for prompt_id, reporter in list(self._reporters.items()):
                try:
                    await self._report(prompt_id, reporter)
                except sqlite3.Error as error:
                    log.warning("progress of %s: %s", prompt_id, error)

    async def _report(self, prompt_id: str, reporter: Reporter) -> None:
        now = time.monotonic()
        report = reporter.progress.report(now)
        if reporter.told < 0:
            # However fast the first frames were: a watcher sees where it starts.
            report = replace(report, percentage=reporter.start, current=int(reporter.start / 100 * report.total))
        if report.percentage > reporter.told and reporter.progress.moving:
            reporter.told = report.percentage
            if reporter.ticks % KEEP_EVERY == 0:
                await self._store.progress(prompt_id, _progress_event(report))
            else:
                await self._store.announce(prompt_id, "progress", _progress_event(report))
            reporter.ticks += 1
        if reporter.preview_is_new and now - reporter.previewed_at >= PREVIEW_S and prompt_id in self._reporters:
            reporter.preview_is_new, reporter.previewed_at = False, now
            data = {"url": f"/preview/{prompt_id}", "frame": report.current}
            await self._store.announce(prompt_id, "preview", data)


def _progress_event(report: Report) -> dict[str, object]:
    return {
        "percentage": report.percentage,
        "current": report.current,
        "total": report.total,
        "message": f"Face swap progress: {report.percentage:.2f}%",
        "eta_seconds": report.eta_s,
        "fps": report.fps,
    }
