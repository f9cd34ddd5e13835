"""The inputs of jobs at the engines: uploaded once to each, or cut into pieces where the whole video is unsuitable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import JobFailure, Problem
from ..files import Files
from ..jobs import Job, Segment
from ..media import MediaWorker, PieceFacts
from ..progress_reporter import ProgressReporter
from ..store import EngineFile, Store, retry_writes
from ..workflow import face_numbers, swap_passes
from .backend import Backend
from .client import FORM_BYTES, ComfyError, Features

T = TypeVar("T")
Work = Coroutine[Any, Any, str]

log = logging.getLogger(__name__)

WHOLE_LEAD = 2.5
"""Segments' lengths that ComfyUI may decode in vain before a segment of the whole video: the first three do not more.

It decodes all that comes before a segment, so the work for a job would grow with the square of its length.
"""
MOST_UNUSED = 2
"""A video is not uploaded whole for a job that is made of less than one in so many of its frames."""
PEOPLE_AT_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds after a job's first frame at which people are looked for, until all whom it names are there."""
UNMET = (
    "No frame that was looked at in the first seconds shows {} faces: face {} is whoever comes into view later, if"
    " anybody does."
)
DEFAULT_UPLOAD_LIMIT_BYTES = 100 * 1024 * 1024
"""Upload limit of a ComfyUI that does not report its own."""


INPUTS_MISSING = JobFailure(
    "inputs_missing", "The video or the picture is no longer on the service's disk; post them again."
)


@dataclass(frozen=True, slots=True)
class Provided:
    """The names an engine knows a segment's inputs by, and the frame of that video at which the segment begins."""

    video: str
    images: tuple[str, ...]
    first_frame: int


@dataclass(frozen=True, slots=True)
class Original:
    """A video that holds the frames of a job when they are counted at `frame_rate` (None: its own), from a first on."""

    path: Path
    frame_rate: Fraction | None
    first_frame: int


class EngineInputs:
    """The videos and faces that the engines have, and the uploads that are missing."""

    def __init__(self, files: Files, media: MediaWorker, progress_reporter: ProgressReporter, store: Store) -> None:
        self._store = store
        self._files = files
        self._progress_reporter = progress_reporter
        self._media = media
        self._sent: dict[tuple[str, str, str], asyncio.Task[str]] = {}
        self._prepared: dict[str, asyncio.Task[bool]] = {}
        self._people: dict[str, asyncio.Task[list[list[str]]]] = {}

    async def provide(self, job: Job, segment: Segment, backend: Backend, *, splittable: bool) -> Provided:
        """Upload a segment's inputs to a backend. What segments share is uploaded once, however many ask.

        A piece of the video takes the place of the whole where the frame rate is changed (ComfyUI's own way of that
        does not look at the clock), where the whole is too large, and where ComfyUI would decode long before it comes
        to the segment. Raises `JobFailure`, `ComfyError`, `OSError`.
        """
        video = self._files.video(job.prompt_id, job.inputs)
        if not await self._files.fetch_inputs(job.prompt_id, job.inputs):
            raise INPUTS_MISSING
        await self._files.make_scratch(job.prompt_id)
        images = await self._send_images(job, backend)
        if job.options.rate is None and (
            await self._takes_whole(job, segment, backend) if splittable else job.is_whole
        ):
            try:
                first_frame = job.inputs.first_frame + segment.first_frame
                return Provided(await self._send(job, backend, video), images, first_frame)
            except JobFailure as failure:
                if failure.code != "upload_too_large" or not splittable:
                    raise
        return await self._send_piece(job, segment, backend, images, splittable=splittable)

    async def provide_still(self, job: Job, backend: Backend) -> Provided:
        """Upload the inputs of a job for one picture to a backend. Raises as `provide` does."""
        if not await self._files.fetch_inputs(job.prompt_id, job.inputs):
            raise INPUTS_MISSING
        images = await self._send_images(job, backend)
        return Provided(await self._send_picture(job, backend, await self.still(job)), images, 0)

    async def still(self, job: Job) -> Path:
        """Return the picture that a job changes, as it goes to the engine; it is made where it is not there."""
        still = self._files.still(job.prompt_id)
        if not await self._files.exists(still):
            await self._files.make_scratch(job.prompt_id)
            await self._media.make_still(
                await self._files.local_video(job.prompt_id, job.inputs), still, job.options.at
            )
        return still

    async def people(self, job: Job, backend: Backend) -> list[list[str]]:
        """Return pictures of the people in a job's first frames, for an engine that tells people apart by them.

        In each segment it then knows who is who as at the beginning. They are looked for once, however many ask.
        """
        if not (await _features(backend)).streams or not people_named(job):
            return []
        task = self._people.get(job.prompt_id)
        if task is None or (task.done() and _is_worth_repeating(task)):
            meeting = self._meet_people(job)
            task = self._people[job.prompt_id] = asyncio.create_task(meeting, name=f"people of {job.prompt_id}")
        return await _result_of(task)

    async def _meet_people(self, job: Job) -> list[list[str]]:
        video = await self._files.local_video(job.prompt_id, job.inputs)
        met: list[list[str]] = []
        for after_s in PEOPLE_AT_S:
            at_s = (job.options.start or 0) + after_s
            try:
                found = await self._media.look_for_faces(video, "video", at_s, job.inputs.frames, waits=True)
            except Problem as problem:
                log.warning("%s: no faces at %s s: %s", job.prompt_id, at_s, problem.code)
                continue
            if len(found.faces) > max(map(len, met), default=0):
                met.append([face.thumbnail.partition(",")[2] for face in found.faces])
            if len(found.faces) >= people_named(job) or at_s >= job.inputs.duration_s:
                break
        return met

    def unmet(self, job: Job) -> tuple[str, ...]:
        """Return a warning about people whom a job names, when they were looked for and not found."""
        task = self._people.get(job.prompt_id)
        if task is None or not task.done() or _is_worth_repeating(task):
            return ()
        named = people_named(job)
        return () if any(len(faces) >= named for faces in task.result()) else (UNMET.format(named, named - 1),)

    async def read_original(self, job: Job, read: Callable[[Original], Awaitable[T]]) -> T:
        """Read the video that a job's results are made of, once more where the file went away under the reader.

        A copy is there to be quick: without it there is still the video, so that its loss is no fault of the job.
        """
        original = await self._original(job)
        before = await self._files.identity(original.path)
        try:
            return await read(original)
        except (JobFailure, OSError):
            if before is not None and await self._files.identity(original.path) == before:
                raise
        return await read(await self._original(job))

    async def _original(self, job: Job) -> Original:
        """Return the copy for pieces, which is quicker to search, or the video itself."""
        prepared = self._files.prepared(job.prompt_id)
        if await self._files.exists(prepared):
            return Original(prepared, None, 0)
        video = await self._files.local_video(job.prompt_id, job.inputs)
        return Original(video, job.options.rate, job.inputs.first_frame)

    def send_again(self, prompt_id: str, backend: Backend) -> None:
        """Upload a job's inputs again for the next attempt: what failed may have failed for them."""
        for key in [key for key in self._sent if key[:2] == (backend.name, prompt_id)]:
            del self._sent[key]

    def forget(self, prompt_id: str) -> None:
        """Forget the uploads of a job that has ended."""
        for key in [key for key in self._sent if key[1] == prompt_id]:
            self._sent.pop(key).cancel()
        for tasks in (self._prepared, self._people):
            if task := tasks.pop(prompt_id, None):
                task.cancel()

    async def _takes_whole(self, job: Job, segment: Segment, backend: Backend) -> bool:
        """Return whether this segment costs little to reach in the whole video."""
        if job.total_frames * MOST_UNUSED < job.inputs.frames:
            return False
        if job.inputs.first_frame + segment.first_frame < WHOLE_LEAD * segment.frame_count:
            return True
        if not (await _features(backend)).streams:
            return False
        # It seeks, which helps where there is something to seek to.
        return not await self._prepare(job)

    async def _send(self, job: Job, backend: Backend, file: Path) -> str:
        """Upload a file, unless the backend has it. A video that is too large is not tried again."""
        return await self._once(job, backend, file.name, partial(self._upload, job, backend, file, file.name))

    async def _once(self, job: Job, backend: Backend, filename: str, upload: Callable[[], Work]) -> str:
        """Have a file uploaded once, however many ask; return the name that the backend gave it."""
        key = (backend.name, job.prompt_id, filename)
        task = self._sent.get(key)
        if task is None or (task.done() and _is_worth_repeating(task)):
            task = self._sent[key] = asyncio.create_task(upload(), name=f"upload {key}")
        return await _result_of(task)

    async def _upload(self, job: Job, backend: Backend, path: Path, filename: str) -> str:
        """Upload a file, or give it a second name in a folder of ours: there its bytes need not be copied.

        Its name is stored before it is there, so that it is emptied on time whatever happens.
        """
        folder = backend.input_folder
        if folder is not None and await self._files.link(path, folder / job.prompt_id / filename):
            return f"{job.prompt_id}/{filename}"
        await self._remember(job, backend, filename)
        name = await backend.client.upload(path, filename, job.prompt_id)
        if name != f"{job.prompt_id}/{filename}":  # another was there already, such as half of it
            await self._remember(job, backend, name.rpartition("/")[2])
        return name

    async def _remember(self, job: Job, backend: Backend, filename: str) -> None:
        if not backend.is_embedded:  # its folders are ours
            file = EngineFile("input", job.prompt_id, filename)
            await retry_writes(partial(self._store.add_engine_files, backend.name, job.prompt_id, [file]))

    async def _send_portrait(self, job: Job, backend: Backend, index: int, picture: Path, name: str) -> str:
        """Cut the face that is meant out of a picture and upload it.

        ReActor makes a face model of pictures of one size, and of the first face that it finds in each.
        """
        await self._files.make_scratch(job.prompt_id)
        portrait = self._files.portrait(job.prompt_id)
        try:
            await self._media.cut_portrait(picture, portrait, index)
            return await self._upload(job, backend, portrait, name)
        except Problem as problem:
            raise JobFailure(problem.code, problem.detail) from problem
        finally:
            await self._files.delete(portrait)

    async def _send_picture(self, job: Job, backend: Backend, image: Path) -> str:
        try:
            return await self._send(job, backend, image)
        except JobFailure as failure:
            if failure.code != "upload_too_large":
                raise
            # Not the same code: of the video less can be sent at a time, which would not help here.
            message = "The picture is larger than ComfyUI takes; use a smaller one, or raise its --max-upload-size."
            raise JobFailure("image_too_large", message) from failure

    async def _send_images(self, job: Job, backend: Backend) -> tuple[str, ...]:
        paths = self._files.images(job.prompt_id, job.inputs)
        index = int((job.options.source_face_index or "0").partition(",")[0])
        if len(paths) == 1 or not job.options.one_person or (backend.is_embedded and index == 0):
            return tuple([await self._send_picture(job, backend, path) for path in paths])
        portraits = [(f"portrait-{number}.png", path) for number, path in enumerate(paths)]
        cut = partial(self._send_portrait, job, backend, index)
        return tuple([await self._once(job, backend, name, partial(cut, path, name)) for name, path in portraits])

    async def _send_piece(
        self, job: Job, segment: Segment, backend: Backend, images: tuple[str, ...], *, splittable: bool
    ) -> Provided:
        limit = (await _features(backend)).max_upload_size or DEFAULT_UPLOAD_LIMIT_BYTES
        if not splittable:
            limit = FORM_BYTES  # so that it begins with the first frame that is wanted
        piece = self._files.piece(segment)
        await self._prepare(job)
        try:
            try:
                facts = await self._cut(job, segment, piece, limit)
            except JobFailure as failure:
                if failure.code != "cut_inexact":
                    raise
                await self._prepare(job, always=True)
                facts = await self._cut(job, segment, piece, limit)
            name = await self._upload(job, backend, piece, f"{piece.stem}{facts.suffix}")
        finally:
            await self._files.delete(piece)
        return Provided(name, images, facts.lead)

    async def _cut(self, job: Job, segment: Segment, piece: Path, limit: int) -> PieceFacts:
        async def cut(original: Original) -> PieceFacts:
            first_frame = original.first_frame + segment.first_frame
            return await self._media.cut(
                original.path, piece, first_frame, segment.frame_count, original.frame_rate, limit - FORM_BYTES
            )

        return await self.read_original(job, cut)

    async def _prepare(self, job: Job, *, always: bool = False) -> bool:
        """Have the copy made that pieces are cut from, where one is needed: once, and again only when it is gone.

        Return whether there is one; where there is none, pieces can be cut out of the video as it is.
        """
        if await self._files.exists(self._files.prepared(job.prompt_id)):
            return True
        task = self._prepared.get(job.prompt_id)
        if task is None or (task.done() and (always or _is_worth_repeating(task) or task.result())):
            work = self._make_copy(job, always)
            task = self._prepared[job.prompt_id] = asyncio.create_task(work, name=f"prepare {job.prompt_id}")
        return await _result_of(task)

    async def _make_copy(self, job: Job, always: bool) -> bool:
        video = await self._files.local_video(job.prompt_id, job.inputs)
        prepared = self._files.prepared(job.prompt_id)
        if not always and await self._media.cuttable(video):
            return False
        message = "Preparing the video…"
        await self._progress_reporter.add_status(job.prompt_id, message, message)
        first_frame = job.inputs.first_frame
        await self._media.prepare(
            video, prepared, job.inputs.frames, job.total_frames, job.options.rate, first_frame=first_frame
        )
        return True


def people_named(job: Job) -> int:
    """Return the number of people who are to be told apart in a job's video; 0 where it replaces but one face."""
    options = job.options
    passes = swap_passes(options.to_dict(), len(job.inputs.images))
    faces = [face for swap_pass in passes for face in swap_pass.faces]
    if not faces and options.face_index is not None and "," in options.face_index:
        faces = face_numbers(options.face_index)
    return 0 if not faces or job.media == "image" else max(faces) + 1


async def _result_of(task: asyncio.Task[T]) -> T:
    """Wait for a task that others wait for too.

    Raises `ComfyError` where it was cancelled because the job had ended: it may have been queued again since.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        waiter = asyncio.current_task()
        if not task.cancelled() or waiter is None or waiter.cancelling():
            raise
        raise ComfyError("The upload was given up.", transient=True) from None


async def _features(backend: Backend) -> Features:
    """Ask a backend for its features: none, where something in front of it does not let the question through."""
    try:
        return await backend.client.known_features()
    except ComfyError:
        return Features(None)


def _is_worth_repeating(task: asyncio.Task[Any]) -> bool:
    """Return whether a task that has ended did not succeed, and may another time."""
    if task.cancelled():
        return True
    error = task.exception()
    return error is not None and not (isinstance(error, JobFailure) and error.code == "upload_too_large")
