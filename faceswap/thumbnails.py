"""Small pictures of jobs: of the result where there is one, else of the video. Made when first asked for, and kept."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, suppress
from pathlib import Path

from .errors import Gone, NotFound, Problem
from .files import Files, FileWriter, RemoteFile
from .jobs import Job
from .media import MediaWorker
from .store import Store

RESULT, INPUT = "result", "input"
MADE_AT_ONCE = 2
"""Thumbnails that are made at a time: of a file that is not here a copy is made for that."""


class Thumbnails:
    """The thumbnails of all jobs. They are erased with what they show."""

    def __init__(self, store: Store, files: Files, media: MediaWorker) -> None:
        self._store = store
        self._files = files
        self._media = media
        self._making = asyncio.Semaphore(MADE_AT_ONCE)

    async def of(self, job: Job) -> bytes:
        """Return the JPEG of a job. Raises `Gone` where all was erased, `NotFound` where nothing can be shown."""
        shown = await self._shown(job)
        image = await self._files.thumbnail(job.prompt_id, shown)
        if image is not None:
            return image
        async with self._making:
            image = await self._files.thumbnail(job.prompt_id, shown)  # another request may have had it made
            if image is None:
                image = await self._made(job, shown)
        if not await self._is_there(job, shown):  # it was erased meanwhile
            await self._files.delete_thumbnails(job.prompt_id)
            raise self._gone(job)
        return image

    async def _made(self, job: Job, shown: str) -> bytes:
        """Make a thumbnail and keep it. Raises as `of` does."""
        is_picture = job.media == "image" if shown == RESULT else job.inputs.is_still
        try:
            image = await self._make(await self._find(job, shown), is_picture=is_picture)
        except Problem:
            raise NotFound(
                "Of this job no picture can be made.", code="no_thumbnail", prompt_id=job.prompt_id
            ) from None
        with suppress(OSError):  # it is made again then
            await self._files.put_thumbnail(job.prompt_id, shown, image)
        return image

    async def _shown(self, job: Job) -> str:
        for shown in (RESULT, INPUT):
            if await self._is_there(job, shown):
                return shown
        raise self._gone(job)

    async def _is_there(self, job: Job, shown: str) -> bool:
        if shown == INPUT:
            return bool(await self._store.with_inputs([job.prompt_id]))
        return bool(await self._store.with_results([job.prompt_id]))

    def _gone(self, job: Job) -> Gone:
        detail = "The files of this job were erased already."
        return Gone(detail, code="inputs_erased", prompt_id=job.prompt_id)

    async def _find(self, job: Job, shown: str) -> Path | RemoteFile:
        if shown == RESULT:
            found = await self._files.find_result(job)
        else:
            found = await self._files.find_input(job.prompt_id, job.inputs.video_file, job.inputs.video_sha256)
        if found is None:
            raise self._gone(job)
        return found

    async def _make(self, found: Path | RemoteFile, *, is_picture: bool) -> bytes:
        if isinstance(found, Path):
            return await self._media.thumbnail(found, is_picture=is_picture)
        files, look_id = self._files.looked_at(), str(uuid.uuid4())
        await files.begin_upload(look_id)
        try:
            await _copy(found, files.new_input(look_id, "part"))
            return await self._media.thumbnail(files.input(look_id, "file"), is_picture=is_picture)
        finally:
            await files.delete_upload(look_id)


async def _copy(source: RemoteFile, writer: FileWriter) -> None:
    try:
        async with aclosing(source.read(0, source.size)) as pieces:
            async for piece in pieces:
                await writer.write(piece)
        await writer.finish("file")
    finally:
        await writer.close()
