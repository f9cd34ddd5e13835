"""Clips, one or many: submitted, shown, saved, and gone on with when they are asked for again."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..client import FaceSwap, FaceSwapError, JobEvent, JobFailed, Result
from .clips import Clip
from .record import Record
from .tasks import Display, Task, show_event

CANCEL_TIMEOUT_S = 10
TRIES = 200
"""The number of times that a batch asks again for a clip when the service does not answer or has no room."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
NOT_LET_IN = frozenset({401, 403})
GONE = frozenset({404, 410})
CANNOT_GO_ON = GONE | {409}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one clip, as `--json` tells it. `status` is SUCCESS, FAILED, or SKIPPED: it was done before."""

    clip: str
    status: str
    output: str | None = None
    prompt_id: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    code: str | None = None
    error: str | None = None
    seconds: float | None = None

    @classmethod
    def of_result(cls, clip: Clip, result: Result, started: float) -> Outcome:
        """Return the outcome of a clip that was begun at a monotonic time and whose result is saved."""
        facts = result.prompt_id, result.bytes, result.sha256, result.warnings
        return cls(clip.video, "SUCCESS", str(result.path), *facts, seconds=round(time.monotonic() - started, 3))

    @classmethod
    def of_error(cls, clip: Clip, error: FaceSwapError) -> Outcome:
        """Return the outcome of a clip that has no result."""
        prompt_id = error.prompt_id if isinstance(error, JobFailed) else None
        return cls(clip.video, "FAILED", prompt_id=prompt_id, code=error.code, error=error.detail)

    def tell(self, display: Display) -> None:
        """Write the outcome for people."""
        if self.status == "FAILED":
            display.line(f"{self.clip}: {self.error}")
        if self.status == "SUCCESS":
            display.line(f"Saved {self.output} ({(self.bytes or 0) / 1e6:.1f} MB) in {self.seconds:.1f} s.")


async def swap_one(client: FaceSwap, clip: Clip, output: Path, display: Display) -> Outcome:
    """Swap one clip into a file. Cancelling this task cancels the job. Raises `FaceSwapError`."""
    started = time.monotonic()
    with display.task("") as task:
        prompt_id = await _submit(client, clip, task)
        result = await follow(client, prompt_id, task, cancels=True)
        path = await client.download(result, output)
    return Outcome.of_result(clip, replace(result, path=path), started)


async def follow(client: FaceSwap, prompt_id: str, task: Task, *, cancels: bool) -> Result:
    """Show a job until it ends, with its warnings. Raises `FaceSwapError`.

    Cancelling this task cancels the job where `cancels` says so.
    """
    told: set[str] = set()

    def show(event: JobEvent) -> None:
        show_event(task, event)
        for warning in event.data.get("warnings", ()):
            if warning not in told:
                told.add(warning)
                task.note(f"Warning: {warning}")

    try:
        return await client.wait(prompt_id, on_event=show)
    except asyncio.CancelledError:
        if cancels:
            task.note("Cancelling the job; press Ctrl-C again to quit at once.")
            with contextlib.suppress(FaceSwapError, TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await client.cancel(prompt_id)
        raise


async def _submit(client: FaceSwap, clip: Clip, task: Task, submission: str | None = None) -> str:
    return await client.submit(
        clip.video,
        clip.images,
        options=clip.options,
        label=clip.label,
        consent=clip.consent,
        idempotency_key=submission,
        on_upload=task.sent,
    )


class Batch:
    """A run over clips of a record, at one service, of which `service` is the name in the record.

    `names` are the names of the results, without extension, by the clips' keys; `tries` is the number of times that
    each clip is asked for again.
    """

    def __init__(
        self,
        client: FaceSwap,
        service: str,
        record: Record,
        names: Mapping[str, str],
        display: Display,
        *,
        tries: int = TRIES,
    ) -> None:
        self._client = client
        self._service = service
        self._record = record
        self._names = names
        self._display = display
        self._tries = tries

    async def run(self, clips: Sequence[Clip], jobs: int, tell: Callable[[Outcome], object]) -> None:
        """Do the clips, `jobs` at a time, and tell how each ended.

        Cancelling this task cancels the jobs. Raises `FaceSwapError` when the service is away, or lets nobody in.
        """
        waiting = iter(clips)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(jobs, len(clips))):
                    tasks.create_task(self._work(waiting, tell))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _work(self, waiting: Iterator[Clip], tell: Callable[[Outcome], object]) -> None:
        for clip in waiting:
            tell(await self._swap(clip))

    async def _swap(self, clip: Clip) -> Outcome:
        started = time.monotonic()
        with self._display.task(clip.name) as task:
            try:
                return Outcome.of_result(clip, await self._insist(clip, task), started)
            except FaceSwapError as error:
                if error.transient or error.status in NOT_LET_IN:
                    raise
                return Outcome.of_error(clip, error)

    async def _insist(self, clip: Clip, task: Task) -> Result:
        tries = 0
        while True:
            try:
                return await self._try(clip, task)
            except FaceSwapError as error:
                if not error.transient or tries == self._tries:
                    raise
                task.step(error.detail)
                pause_s = min(FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S)
                await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0))
                tries += 1

    async def _try(self, clip: Clip, task: Task) -> Result:
        """Find or make the clip's job, wait for its end, and save the result."""
        prompt_id = await self._known_job(clip) or await self._new_job(clip, task)
        result = await follow(self._client, prompt_id, task, cancels=True)
        name = clip.output or self._record.free_name(clip, self._names[clip.key], Path(result.filename).suffix)
        self._record.change(clip, output=name, bytes=None)  # first: the name is taken, also after a kill
        try:
            path = await self._client.download(result, self._record.folder / name)
        except FaceSwapError as error:
            if error.status not in GONE:
                raise
            self._record.change(clip, fingerprint="")  # the result was erased since: with the next try it is made anew
            raise FaceSwapError(0, error.code, error.detail) from error
        self._record.change(clip, output=name, bytes=result.bytes)
        return replace(result, path=path)

    async def _known_job(self, clip: Clip) -> str | None:
        """Return the job of an earlier call, which goes on if it had failed; None when there is none to go on with."""
        entry = self._record.entry(clip)
        if entry.prompt_id is None or not self._is_of(clip):
            return None
        try:
            status = await self._client.status(entry.prompt_id)
            if status["status"] in ("FAILED", "CANCELLED"):
                await self._client.retry(entry.prompt_id)
        except FaceSwapError as error:
            if error.status not in CANNOT_GO_ON:
                raise
            self._record.change(clip, fingerprint="")
            return None
        return entry.prompt_id

    async def _new_job(self, clip: Clip, task: Task) -> str:
        """Submit the clip; a submission that an earlier call could not finish is repeated, and makes one job."""
        is_repeated = self._is_of(clip)
        if not is_repeated:
            fresh = {"fingerprint": clip.fingerprint(), "service": self._service, "submission": str(uuid.uuid4())}
            self._record.change(clip, **fresh, prompt_id=None, bytes=None)
        prompt_id = await _submit(self._client, clip, task, self._record.entry(clip).submission)
        self._record.change(clip, prompt_id=prompt_id)
        if is_repeated:  # the earlier call may have cancelled it
            return await self._known_job(clip) or await self._new_job(clip, task)
        return prompt_id

    def _is_of(self, clip: Clip) -> bool:
        """Tell whether the record is of the clip as it is now, at this service."""
        entry = self._record.entry(clip)
        return entry.fingerprint == clip.fingerprint() and entry.service == self._service
