"""Inputs that are here already: resumable uploads, and the inputs of jobs."""

from __future__ import annotations

from functools import partial

from ..errors import Gone, NotFound
from ..files import Files
from ..store import Store
from .files import KeptFile
from .uploads import Uploads


class KeptInputs:
    """The uploads and the jobs of an owner, as sources of inputs."""

    def __init__(self, store: Store, files: Files, uploads: Uploads) -> None:
        self._store = store
        self._files = files
        self._uploads = uploads

    async def of_upload(self, upload_id: str, owner: str | None) -> KeptFile:
        """Return the file of an upload that is whole. Raises `NotFound`, `Conflict`."""
        upload = await self._uploads.use(upload_id, owner)
        return KeptFile(
            upload.length,
            upload.sha256,
            partial(self._files.read_parts, upload_id, upload.parts),
            partial(self._files.link_part, upload_id, upload.parts[0]) if upload.sha256 else None,
            NotFound("This upload has expired meanwhile.", code="unknown_upload"),
        )

    async def of_job(self, prompt_id: str, owner: str | None, kind: str) -> list[KeptFile]:
        """Return the video of a job, or its pictures. Raises `NotFound`, `Gone`."""
        job = await self._store.owned_job(prompt_id, owner)
        gone = Gone("The inputs of that job were erased already.", code="inputs_erased", prompt_id=prompt_id)
        if not await self._store.with_inputs([prompt_id]):
            raise gone
        inputs = job.inputs
        files = [(image.file, image.sha256) for image in inputs.images]
        if kind == "video":
            files = [(inputs.video_file, inputs.video_sha256)]
        return [
            KeptFile(
                inputs.video_bytes if kind == "video" else None,
                sha256,
                partial(self._files.read_input, prompt_id, file),
                partial(self._files.link_input, prompt_id, file),
                gone,
            )
            for file, sha256 in files
        ]
