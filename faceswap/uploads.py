"""The inputs of jobs at the engines: sent once to each however many segments ask, in pieces where too large."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .backend import Backend
from .errors import JobFailure
from .folders import Folders
from .jobs import Job, Segment
from .media import MediaWorker


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The names a graph uses for a segment's inputs, and at which frame of that video the segment begins."""

    video: str
    image: str
    first_frame: int


class Uploads:
    """What was sent where."""

    def __init__(self, folders: Folders, media: MediaWorker) -> None:
        self._folders = folders
        self._media = media
        self._tasks: dict[tuple[str, str], asyncio.Task[tuple[str | None, str]]] = {}

    async def provide(self, job: Job, segment: Segment, backend: Backend, *, splittable: bool) -> Uploaded:
        """Have a segment's inputs at a backend. Raises JobFailure, ComfyError, and OSError when they cannot be read."""
        # A forced rate is counted from the first frame of the file, which a piece does not have.
        may_cut = splittable and job.options.rate is None
        video, image = await self._whole(job, backend, may_cut)
        if video is not None:
            return Uploaded(video, image, segment.first_frame)
        return await self._piece(job, segment, backend, image)

    def repeat(self, prompt_id: str, backend: Backend) -> None:
        """The next attempt at this backend is to send the inputs anew: it may have lost them."""
        self._tasks.pop((backend.name, prompt_id), None)

    def forget(self, prompt_id: str) -> None:
        """The job has ended."""
        for key in [key for key in self._tasks if key[1] == prompt_id]:
            self._tasks.pop(key).cancel()

    async def _whole(self, job: Job, backend: Backend, may_cut: bool) -> tuple[str | None, str]:
        key = (backend.name, job.prompt_id)
        task = self._tasks.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._tasks[key] = asyncio.create_task(self._send(job, backend, may_cut), name=f"upload {key}")
        return await asyncio.shield(task)

    async def _send(self, job: Job, backend: Backend, may_cut: bool) -> tuple[str | None, str]:
        """Send picture and video; no name for a video that is too large and may be cut."""
        video = self._folders.video(job.prompt_id, job.inputs)
        image = self._folders.image(job.prompt_id, job.inputs)
        if not (video.is_file() and image.is_file()):
            sentence = "The video or the picture is no longer on the service's disk; post them again."
            raise JobFailure("inputs_missing", sentence)
        image_name = await backend.client.upload(image, image.name, job.prompt_id)
        try:
            return await backend.client.upload(video, video.name, job.prompt_id), image_name
        except JobFailure as failure:
            if failure.code != "upload_too_large" or not may_cut:
                raise
            return None, image_name

    async def _piece(self, job: Job, segment: Segment, backend: Backend, image: str) -> Uploaded:
        video = self._folders.video(job.prompt_id, job.inputs)
        piece = self._folders.piece(segment, video.name)
        try:
            facts = await self._media.cut(video, piece, segment.first_frame, segment.frame_count)
            name = await backend.client.upload(piece, piece.name, job.prompt_id)
        finally:
            piece.unlink(missing_ok=True)
        return Uploaded(name, image, facts.lead)
