"""Decides what becomes of an attempt that came to nothing: again, elsewhere, in shorter parts, or the job's end."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

from .comfy.backend import DANGEROUS_DEATHS, Backend
from .comfy.client import ComfyError
from .comfy.in_flight import GivenUp, InFlightPrompt
from .comfy.inputs import Uploads
from .config import Timeouts
from .errors import JobFailure
from .jobs import Segment
from .progress_reporter import ProgressReporter
from .store import Store, retry_writes
from .workflow import Workflow

log = logging.getLogger(__name__)

ELSEWHERE = frozenset({"node_missing", "model_missing", "model_broken", "upload_too_large", "image_too_large"})
"""Failures that are one ComfyUI's own: another may well do it."""
FIRST_LOSS_PAUSE_S = 0.1


class Recovery:
    """Puts segments back into the queue, as they are or cut, and counts what went wrong with them."""

    def __init__(
        self,
        store: Store,
        progress_reporter: ProgressReporter,
        uploads: Uploads,
        workflows: Mapping[str, Workflow],
        timeouts: Timeouts,
        has_other_than: Callable[[Backend], bool],
        fail: Callable[[str, JobFailure], Awaitable[None]],
    ) -> None:
        """`has_other_than(backend)` tells whether another engine can be given work, `fail(prompt_id, failure)` ends a
        job."""
        self._store = store
        self._progress_reporter = progress_reporter
        self._uploads = uploads
        self._workflows = workflows
        self._timeouts = timeouts
        self._has_other_than = has_other_than
        self._fail = fail

    async def given_up(self, segment: Segment, error: GivenUp) -> None:
        """Have a segment done under a new id, by another engine or by the same when it answers again."""
        log.warning("job %s: %s; frame %d on anew", segment.prompt_id, error.message, segment.first_frame)
        message = f"{error.message}; resuming at frame {segment.first_frame} as soon as a ComfyUI can take it."
        await self._progress_reporter.add_status(segment.prompt_id, message)
        await retry_writes(partial(self._store.requeue, segment, pause_s=FIRST_LOSS_PAUSE_S))

    async def lost(self, prompt: InFlightPrompt, backend: Backend) -> None:
        """The engine has forgotten a prompt: it is done again. When it died at work on it, that may be the video."""
        segment, died = prompt.segment, prompt.running
        deaths = segment.deaths + died
        timeouts = self._timeouts
        if deaths >= timeouts.death_limit or segment.losses + 1 >= timeouts.loss_limit:
            message = "ComfyUI forgot the prompt again and again; look into its log, then retry the job."
            if died:
                count = "a frame" if segment.frame_count == 1 else f"{segment.frame_count} frames"
                message = (
                    f"ComfyUI died {deaths} times in a row while it worked on {count} of this video from frame"
                    f" {segment.first_frame} on; look into its log, then retry the job."
                )
            await self.failed(segment, backend, JobFailure("engine_crashed", message))
            return
        log.warning("job %s: %s restarted, frame %d on anew", segment.prompt_id, backend.name, segment.first_frame)
        await self._progress_reporter.add_status(
            segment.prompt_id, f"ComfyUI restarted, resuming at frame {segment.first_frame}"
        )
        pause_s = min(FIRST_LOSS_PAUSE_S * 2**segment.losses, timeouts.retry_s[-1])
        if died and deaths >= DANGEROUS_DEATHS and await self._can_split(segment):
            half = -(-segment.frame_count // 2)
            split = partial(self._store.split, segment, half, pause_s=pause_s, died=True, alone=True)
            await retry_writes(split)
        else:
            await retry_writes(partial(self._store.requeue, segment, pause_s=pause_s, lost=True, died=died))

    async def failed(self, segment: Segment, backend: Backend, failure: JobFailure) -> None:
        """Try again what may pass by itself; end the job otherwise."""
        self._uploads.repeat(segment.prompt_id, backend)
        pauses_s = self._timeouts.retry_s
        if failure.code == "engine_disk_full":
            await self._progress_reporter.add_status(segment.prompt_id, failure.message, failure.message)
            await retry_writes(partial(self._store.requeue, segment, pause_s=pauses_s[-1]))
            return
        elsewhere = failure.code in ELSEWHERE and self._has_other_than(backend)
        if failure.code == "upload_too_large" and not (elsewhere and segment.failures == 0):
            if await self._can_split(segment):
                await retry_writes(partial(self._store.split, segment, -(-segment.frame_count // 2)))
                return
            elsewhere = False
        if not (failure.transient or elsewhere) or segment.failures >= len(pauses_s):
            await self._fail(segment.prompt_id, failure)
            return
        log.warning("job %s on %s: %s: %s", segment.prompt_id, backend.name, failure.code, failure.message)
        message = f"{failure.message} Attempt {segment.failures + 2} of {len(pauses_s) + 1} follows."
        await self._progress_reporter.add_status(segment.prompt_id, message)
        pause_s = pauses_s[segment.failures] * random.uniform(0.8, 1.2)
        if failure.code == "out_of_memory" and await self._can_split(segment):
            with suppress(ComfyError):
                await backend.client.free()
            half = segment.frame_count // 2 + 1
            await retry_writes(partial(self._store.split, segment, half, pause_s=pause_s, failed=True))
        else:
            await retry_writes(partial(self._store.requeue, segment, failed=True, pause_s=pause_s))

    async def _can_split(self, segment: Segment) -> bool:
        """Whether a segment can be done in shorter ones."""
        job = await retry_writes(partial(self._store.job, segment.prompt_id))
        workflow = self._workflows.get(job.workflow)
        return segment.frame_count > 1 and workflow is not None and workflow.splittable
