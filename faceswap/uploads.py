"""The inputs of jobs at the engines: sent once to each, in pieces where the video is too large for one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .backend import Backend
from .errors import JobFailure
from .folders import Folders
from .jobs import Job, Segment
from .media import MediaWorker


@dataclass(frozen=True, slots=True)
class Provided:
    """What an engine knows a segment's inputs by, and at which frame of that video the segment begins."""

    video: str
    image: str
    first_frame: int


class Uploads:
    """What was uploaded where."""

    def __init__(self, folders: Folders, media: MediaWorker) -> None:
        self._folders = folders
        self._media = media
        self._tasks: dict[tuple[str, str], asyncio.Task[tuple[str | None, str]]] = {}

    async def provide(self, job: Job, segment: Segment, backend: Backend, *, splittable: bool) -> Provided:
        """A segment's inputs at a backend: uploaded once however many segments ask.

        A video that is too large for the backend is cut where the workflow is `splittable`: a piece for each segment.
        Raises `JobFailure`, `ComfyError`, `OSError`.
        """
        key = (backend.name, job.prompt_id)
        task = self._tasks.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            # A forced rate is counted from the first frame of the file.
            cuttable = splittable and job.options.rate is None
            task = self._tasks[key] = asyncio.create_task(self._send(job, backend, cuttable), name=f"upload {key}")
        video, image = await asyncio.shield(task)
        if video is None:
            return await self._provide_piece(job, segment, backend, image)
        return Provided(video, image, segment.first_frame)

    def repeat(self, prompt_id: str, backend: Backend) -> None:
        """What failed may have failed for its inputs: upload them again for the next attempt."""
        self._tasks.pop((backend.name, prompt_id), None)

    def forget(self, prompt_id: str) -> None:
        """The job has ended."""
        for key in [key for key in self._tasks if key[1] == prompt_id]:
            self._tasks.pop(key).cancel()

    async def _send(self, job: Job, backend: Backend, cuttable: bool) -> tuple[str | None, str]:
        """The names of the video, None where it has to be cut, and of the face."""
        video = self._folders.video(job.prompt_id, job.inputs)
        image = self._folders.image(job.prompt_id, job.inputs)
        if not (video.is_file() and image.is_file()):
            sentence = "The video or the picture is no longer on the service's disk; post them again."
            raise JobFailure("inputs_missing", sentence)
        image_name = await backend.client.upload(image, image.name, job.prompt_id)
        try:
            return await backend.client.upload(video, video.name, job.prompt_id), image_name
        except JobFailure as failure:
            if failure.code != "upload_too_large" or not cuttable:
                raise
            return None, image_name

    async def _provide_piece(self, job: Job, segment: Segment, backend: Backend, image: str) -> Provided:
        video = self._folders.video(job.prompt_id, job.inputs)
        piece = self._folders.piece(segment, video.name)
        try:
            facts = await self._media.cut(video, piece, segment.first_frame, segment.frame_count)
            name = await backend.client.upload(piece, piece.name, job.prompt_id)
        finally:
            piece.unlink(missing_ok=True)
        return Provided(name, image, facts.lead)
