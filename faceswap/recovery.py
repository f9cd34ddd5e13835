"""Recovery from a failed attempt: the segment is done again, elsewhere or in shorter parts, or the job ends."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from .comfy.backend import DANGEROUS_DEATHS, Backend
from .comfy.client import ComfyError
from .comfy.in_flight import GivenUp, InFlightPrompt, Lost
from .comfy.inputs import EngineInputs
from .config import Timeouts
from .durable import DISK_FULL
from .errors import JobFailure, NotFound
from .files import FilesUnavailable
from .jobs import Segment
from .progress_reporter import ProgressReporter
from .store import Store, StoreError, retry_writes
from .workflow import Workflow

log = logging.getLogger(__name__)

ELSEWHERE = frozenset({"node_missing", "model_missing", "model_broken", "upload_too_large", "image_too_large"})
"""Failures of one ComfyUI only: another may succeed."""
FIRST_LOSS_PAUSE_S = 0.1
DISK_PAUSE_S = 2.0
"""Pause between two attempts while the disk is full."""
DISK_FULL_MESSAGE = "The disk is full; the job goes on when there is room."
FILES_AWAY_MESSAGE = "The store of the files cannot be reached; the job goes on when it can be."
DATABASE_AWAY_MESSAGE = "The database cannot be used; the job goes on when it can be."


class TooLong(Exception):
    """A segment has more frames than its engine has memory for; nothing was sent."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Again:
    """The segment waits and is done again, at any backend."""

    message: str | None = None
    """Text for the watchers of the job."""
    is_step: bool = False
    """True when `/status` shows the message too."""
    pause_s: float = 0.0
    failed: bool = False
    lost: bool = False
    died: bool = False


@dataclass(frozen=True, slots=True)
class InParts:
    """The segment waits and is done again in parts of at most `limit` frames."""

    limit: int
    message: str | None = None
    pause_s: float = 0.0
    failed: bool = False
    died: bool = False
    unsent: bool = False
    alone: bool = False
    """True when the other segments of the job keep their length."""
    free_memory: bool = False
    """True when the engine is asked to free its memory first."""


@dataclass(frozen=True, slots=True)
class EndOfJob:
    """The job ends with a failure."""

    failure: JobFailure


Decision = Again | InParts | EndOfJob
Cause = GivenUp | Lost | TooLong | JobFailure


def decide(
    segment: Segment, cause: Cause, timeouts: Timeouts, *, died: bool, splittable: bool, replaceable: bool
) -> Decision:
    """Decide what becomes of a segment. Pure but for the jitter of the pause before another attempt.

    died         its engine was seen at work on it before it was lost
    splittable   it can be done in shorter parts
    replaceable  another engine could do it
    """
    match cause:
        case TooLong(limit=limit):
            return InParts(limit, unsent=True)
        case GivenUp(message=reason):
            message = f"{reason}; resuming at frame {segment.first_frame} as soon as a ComfyUI can take it."
            return Again(message, pause_s=FIRST_LOSS_PAUSE_S)
        case Lost():
            return _after_loss(segment, timeouts, died=died, splittable=splittable)
    return _after_failure(segment, cause, timeouts.retry_s, splittable=splittable, replaceable=replaceable)


def _after_loss(segment: Segment, timeouts: Timeouts, *, died: bool, splittable: bool) -> Decision:
    """Decide what becomes of a segment that the engine lost. An engine that died may have died of the video."""
    deaths = segment.deaths + died
    if deaths >= timeouts.death_limit or segment.losses + 1 >= timeouts.loss_limit:
        message = "ComfyUI forgot the prompt again and again; look into its log, then retry the job."
        if died:
            count = "a frame" if segment.frame_count == 1 else f"{segment.frame_count} frames"
            message = (
                f"ComfyUI died {deaths} times in a row while it worked on {count} of this video from frame"
                f" {segment.first_frame} on; look into its log, then retry the job."
            )
        return EndOfJob(JobFailure("engine_crashed", message))
    message = f"ComfyUI restarted, resuming at frame {segment.first_frame}"
    pause_s = min(FIRST_LOSS_PAUSE_S * 2**segment.losses, timeouts.retry_s[-1])
    if died and deaths >= DANGEROUS_DEATHS and splittable:
        return InParts(-(-segment.frame_count // 2), message, pause_s, died=True, alone=True)
    return Again(message, pause_s=pause_s, lost=True, died=died)


def _after_failure(
    segment: Segment, failure: JobFailure, pauses_s: tuple[float, ...], *, splittable: bool, replaceable: bool
) -> Decision:
    """Decide to try again after a transient failure, and to end the job after any other."""
    if failure.code == "engine_disk_full":
        return Again(failure.message, is_step=True, pause_s=pauses_s[-1])
    elsewhere = failure.code in ELSEWHERE and replaceable
    if failure.code == "upload_too_large" and not (elsewhere and segment.failures == 0):
        if splittable:
            return InParts(-(-segment.frame_count // 2))
        elsewhere = False
    if not (failure.transient or elsewhere) or segment.failures >= len(pauses_s):
        return EndOfJob(failure)
    message = f"{failure.message} Attempt {segment.failures + 2} of {len(pauses_s) + 1} follows."
    pause_s = pauses_s[segment.failures] * random.uniform(0.8, 1.2)
    if failure.code == "out_of_memory" and splittable:
        return InParts(segment.frame_count // 2 + 1, message, pause_s, failed=True, free_memory=True)
    return Again(message, pause_s=pause_s, failed=True)


class Recovery:
    """The way back into the queue for segments, whole or split, with a count of their failures."""

    def __init__(
        self,
        store: Store,
        progress_reporter: ProgressReporter,
        inputs: EngineInputs,
        workflows: Mapping[str, Workflow],
        timeouts: Timeouts,
    ) -> None:
        self._store = store
        self._progress_reporter = progress_reporter
        self._inputs = inputs
        self._workflows = workflows
        self._timeouts = timeouts

    async def recover(self, prompt: InFlightPrompt, backend: Backend, cause: Cause) -> JobFailure | None:
        """Requeue or split the segment of a failed attempt; return the failure when the job has to end."""
        segment = prompt.segment
        log.warning(
            "job %s, frame %d on, at %s: %s", segment.prompt_id, segment.first_frame, backend.name, _said(cause)
        )
        if isinstance(cause, JobFailure):
            self._inputs.send_again(segment.prompt_id, backend)
        decision = decide(
            segment,
            cause,
            self._timeouts,
            died=prompt.running,
            splittable=await self._can_split(segment),
            replaceable=backend.replaceable,
        )
        if isinstance(decision, EndOfJob):
            return decision.failure
        if isinstance(decision, InParts) and decision.free_memory:
            with suppress(ComfyError):
                await backend.client.free()
        if decision.message is not None:
            step = decision.message if isinstance(decision, Again) and decision.is_step else None
            await self._progress_reporter.add_status(segment.prompt_id, decision.message, step)
        await self._carry_out(segment, decision)
        return None

    async def _carry_out(self, segment: Segment, decision: Again | InParts) -> None:
        match decision:
            case Again(pause_s=pause_s, failed=failed, lost=lost, died=died):
                move = partial(self._store.requeue, segment, pause_s=pause_s, failed=failed, lost=lost, died=died)
            case InParts(limit=limit, pause_s=pause_s, failed=failed, died=died, unsent=unsent, alone=alone):
                move = partial(
                    self._store.split,
                    segment,
                    limit,
                    pause_s=pause_s,
                    failed=failed,
                    died=died,
                    unsent=unsent,
                    alone=alone,
                )
        await retry_writes(move)

    async def _can_split(self, segment: Segment) -> bool:
        """Return whether a segment can be done in shorter ones."""
        job = await retry_writes(partial(self._store.job, segment.prompt_id))
        workflow = self._workflows.get(job.workflow)
        return segment.frame_count > 1 and workflow is not None and workflow.splittable


def _said(cause: Cause) -> str:
    """Return the text of a cause for the log."""
    match cause:
        case JobFailure(code=code, message=message):
            return f"{code}: {message}"
        case GivenUp(message=message):
            return message
        case TooLong(limit=limit):
            return f"more than the {limit} frames there is memory for"
    return "it is not known any more"


def is_full(error: OSError | StoreError) -> bool:
    """Return whether an error passes when there is room on the disk again, or the store of the files is back."""
    if isinstance(error, StoreError):
        return error.transient
    return isinstance(error, FilesUnavailable) or error.errno in DISK_FULL


async def wait_for_room(store: Store, prompt_id: str, cause: OSError | StoreError | None = None) -> None:
    """Pause a job on a full disk, or without its files or record; show that as its step if it can be written."""
    message = DISK_FULL_MESSAGE
    if isinstance(cause, FilesUnavailable):
        message = FILES_AWAY_MESSAGE
    elif isinstance(cause, StoreError) and not cause.disk_full:
        message = DATABASE_AWAY_MESSAGE
    with suppress(StoreError, NotFound):
        if (await store.job(prompt_id)).step != message:
            log.warning("job %s: %s (%s)", prompt_id, message, cause or "disk_full")
            await store.add_status(prompt_id, message, message)
    await asyncio.sleep(DISK_PAUSE_S)
