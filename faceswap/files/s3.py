"""The files of jobs in a bucket. Media is worked on in this node's scratch folders, which are cleared at each start."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath

from ..config import ConfigError
from ..jobs import RESULT_TYPES, Inputs, Job, Segment
from ..uploads import Part
from .errors import FilesRefused, FilesUnavailable
from .local import ERASURE, UPLOAD
from .objects import Objects, StoredObject, Upload
from .parts import PartWriter, new_part_name
from .shared import ABANDONED_S, SharedFiles, is_result_of, result_epoch, result_name
from .writer import PIECE_BYTES, FileWriter, new_file

log = logging.getLogger(__name__)

FETCHES = 4
"""Segments of one job that are fetched at the same time."""
PREVIEW_S = 2.0
"""The longest that storing a preview may take; the next one comes soon."""
CHECK_S = 30.0
"""The longest that the check of the bucket at the start may take."""
LOOK_S = 0.8
"""The bound that lets `/readyz` always answer within a second."""
AGAIN_S = 5.0
"""The pause before what could not be deleted is tried again."""


class _InputWriter(FileWriter):
    """An input that is written to the scratch folder and uploaded at the same time, piece by piece."""

    def __init__(self, path: Path, upload: Upload) -> None:
        super().__init__(path, durable=False)
        self._upload = upload

    async def finish(self, name: str, *, durable_name: bool = False) -> None:
        """Wait until the object is stored; close the file and rename it to `name`. Raises `OSError`."""
        await self._write_gathered()
        await self._upload.finish()
        await super().finish(name, durable_name=durable_name)

    async def close(self) -> None:
        """Close the file; abort the upload unless it is finished."""
        await self._upload.abort()
        await super().close()

    async def _write_gathered(self) -> None:
        piece = self._gathered
        await super()._write_gathered()
        if piece:
            await self._upload.write(piece)


class _ObjectPartWriter:
    """Objects one after the other: a new part after each `store`."""

    sha256 = None

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects = objects
        self._folder = folder
        self._stored: list[Part] = []
        self._name = ""
        self._size = 0
        self._gathered = bytearray()
        self._upload: Upload | None = None

    async def write(self, piece: bytes) -> None:
        """Append bytes, sent in pieces of some size."""
        if self._upload is None:
            self._name, self._size = new_part_name(), 0
            self._upload = self._objects.upload(f"{self._folder}{self._name}", 0)
        self._size += len(piece)
        self._gathered += piece
        if len(self._gathered) >= PIECE_BYTES:
            await self._send()

    async def _send(self) -> None:
        piece, self._gathered = self._gathered, bytearray()
        if self._upload is not None and piece:
            await self._upload.write(piece)

    async def store(self) -> list[Part]:
        """End the object that grows; return all parts."""
        if self._upload is not None:
            await self._send()
            await self._upload.finish()
            self._stored.append(Part(self._name, self._size))
            self._upload = None
        return self._stored

    async def close(self) -> None:
        """Abort the object that is not whole."""
        if self._upload is not None:
            await self._upload.abort()


@dataclass(frozen=True)
class ObjectFile:
    """A file of a job in the bucket."""

    objects: Objects
    key: str
    size: int
    modified: datetime
    etag: str
    """The digest, which is the same at all nodes."""

    def read(self, start: int, end: int) -> AsyncGenerator[memoryview]:
        """Yield the bytes from `start` to `end`. Raises `OSError`."""
        return self.objects.read(self.key, start, end)

    async def sign(self, lifetime_s: float) -> str:
        """Return a URL under which anybody can read the file for a time."""
        return await self.objects.sign(self.key, lifetime_s)


class S3Files(SharedFiles):
    """The files of jobs as objects, with copies of those at work in the scratch folders of the data directory."""

    def __init__(self, data_dir: Path, url: str, node: str, most_input_bytes: int) -> None:
        """`url` is `s3://bucket/prefix`; no input is larger than `most_input_bytes`. Raises `ConfigError`."""
        super().__init__(data_dir, node)
        try:
            self._objects = Objects(url)
        except FilesRefused as error:
            raise ConfigError(f"FACESWAP_FILES_URL={error}") from error
        self._most_input_bytes = most_input_bytes
        self._fetching: dict[Path, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[bool] | None = None
        self._to_delete: set[str] = set()
        self._deleting: asyncio.Task[None] | None = None
        self._uploading: set[str] = set()

    async def start(self) -> None:
        """Clear the scratch folders and check the bucket: what is written can be read and deleted.

        Raises `ConfigError` where the bucket or the credentials are wrong, `FilesUnavailable` when it cannot be asked.
        """
        await super().start()
        await self.delete_copies(await self.copied_jobs())
        await self._check_bucket()

    async def check(self) -> None:
        """Check data folder and bucket, while a service may use them. Raises as `start` does."""
        await super().check()
        await self._check_bucket()

    async def _check_bucket(self) -> None:
        probe = f"marks/{self._node}.check"
        try:
            async with asyncio.timeout(CHECK_S):
                await self._objects.put(probe, self._node.encode())
                await self._objects.get(probe)
                await self._objects.delete([probe])
        except FilesRefused as error:
            raise ConfigError(f"FACESWAP_FILES_URL: {error}") from error
        except TimeoutError:
            raise FilesUnavailable(f"{self._objects.url} does not answer within {CHECK_S:.0f} s") from None

    async def close(self) -> None:
        """End what is under way."""
        tasks = [task for task in (*self._fetching.values(), self._looking, self._deleting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def is_available(self) -> bool:
        """Return whether the bucket answers now; one question serves all that ask meanwhile."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look at the bucket")
        await asyncio.wait({self._looking}, timeout=LOOK_S)
        return self._looking.done() and self._looking.result()

    async def _look(self) -> bool:
        try:
            await self._objects.find(f"marks/{self._node}.check")
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    # Deletion: what cannot be deleted now is tried again until it is

    async def _delete(self, *names: str) -> None:
        """Delete objects, and all below a name that ends with a slash. Raises `OSError`; they go later then."""
        self._to_delete.update(names)
        try:
            await self._delete_now(names)
        except OSError:
            if self._deleting is None or self._deleting.done():
                self._deleting = asyncio.create_task(self._delete_later(), name="delete later")
            raise

    async def _delete_now(self, names: Collection[str]) -> None:
        folders, keys = [name for name in names if name.endswith("/")], [name for name in names if name[-1] != "/"]
        for folder in folders:
            await self._objects.delete_all(folder)
            self._to_delete.discard(folder)
        await self._objects.delete(keys)
        self._to_delete.difference_update(keys)

    async def _delete_later(self) -> None:
        while self._to_delete:
            await asyncio.sleep(AGAIN_S)
            try:
                await self._delete_now(sorted(self._to_delete))
            except FilesUnavailable:
                pass
            except OSError as error:
                log.error("%d objects and folders cannot be deleted: %s", len(self._to_delete), error)

    # Inputs

    async def begin_upload(self, prompt_id: str) -> None:
        """Mark an upload in the bucket; make the folder of the job's inputs."""
        self._uploading.add(prompt_id)
        try:
            await self._objects.put(_mark(prompt_id, UPLOAD), self._node.encode())
            await asyncio.to_thread(self.inputs(prompt_id).mkdir, mode=0o700, parents=True)
        except BaseException:
            await self.accept_upload(prompt_id)
            raise

    def new_input(self, prompt_id: str, name: str) -> FileWriter:
        """Return a writer for a new file among a job's inputs, which is uploaded while it grows."""
        upload = self._objects.upload(_input(prompt_id, name), self._most_input_bytes)
        return _InputWriter(self.input(prompt_id, name), upload)

    async def sync_upload(self, prompt_id: str) -> None:
        """Do nothing: the objects are stored."""

    async def accept_upload(self, prompt_id: str) -> None:
        """Remove the mark of an upload after its job was committed."""
        self._uploading.discard(prompt_id)
        with suppress(OSError):  # it is removed later, or by the next start
            await self._delete(_mark(prompt_id, UPLOAD))

    async def delete_upload(self, prompt_id: str) -> None:
        """Delete the inputs of a job that was never committed, their mark last."""
        self._uploading.discard(prompt_id)
        await asyncio.to_thread(shutil.rmtree, self.inputs(prompt_id), ignore_errors=True)
        with suppress(FilesUnavailable):  # they go later
            await self._delete(f"inputs/{prompt_id}/", _mark(prompt_id, UPLOAD))

    async def fetch_inputs(self, prompt_id: str, inputs: Inputs) -> bool:
        """Make a job's inputs local; return False when they are gone."""
        try:
            await self.local_video(prompt_id, inputs)
            for image in inputs.images:
                await self._fetch(_input(prompt_id, image.file), self.input(prompt_id, image.file))
        except FileNotFoundError:
            return False
        return True

    async def find_input(self, prompt_id: str, file: str, sha256: str) -> ObjectFile | None:
        """Return one of a job's inputs; None when it is gone. Raises `OSError`."""
        try:
            found = await self._objects.find(_input(prompt_id, file))
        except FileNotFoundError:
            return None
        return ObjectFile(self._objects, found.key, found.size, found.modified, sha256)

    async def local_video(self, prompt_id: str, inputs: Inputs) -> Path:
        """Make a job's video local; return its path. Raises `OSError`."""
        path = self.video(prompt_id, inputs)
        await self._fetch(_input(prompt_id, inputs.video_file), path)
        return path

    async def delete_inputs(self, prompt_id: str) -> None:
        """Delete a job's inputs, segments, preview and thumbnails, and their copies here and in the embedded engine.

        The copies go last: after a crash they tell the next start that something may be left.
        """
        await self._end_fetches(prompt_id)
        try:
            folders = [f"{name}/{prompt_id}/" for name in ("inputs", "segments", "thumbnails")]
            await self._delete(*folders, _preview(prompt_id))
        finally:
            await super().delete_inputs(prompt_id)

    async def link_input(self, prompt_id: str, file: str, path: Path) -> bool:
        """Return False: an object has no second name."""
        return False

    async def read_input(self, prompt_id: str, file: str) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes of one of a job's inputs. Raises `OSError`, `FileNotFoundError` when it is gone."""
        found = await self._objects.find(_input(prompt_id, file))
        async with aclosing(self._objects.read(found.key, 0, found.size)) as pieces:
            async for piece in pieces:
                yield piece

    # Resumable uploads

    def new_part_writer(self, upload_id: str) -> PartWriter:
        """Return a writer of more bytes of an upload."""
        return _ObjectPartWriter(self._objects, f"uploads/{upload_id}/")

    async def read_parts(self, upload_id: str, parts: Iterable[Part]) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes of parts of an upload. Raises `OSError`, `FileNotFoundError` when they are gone."""
        for part in parts:
            key = f"uploads/{upload_id}/{part.name}"
            async with aclosing(self._objects.read(key, 0, part.size)) as pieces:
                async for piece in pieces:
                    yield piece

    async def link_part(self, upload_id: str, part: Part, path: Path) -> bool:
        """Return False: an object has no second name."""
        return False

    async def delete_parts(self, upload_id: str) -> None:
        """Delete all that there is of an upload. Raises `OSError`; it goes later then."""
        await self._delete(f"uploads/{upload_id}/")

    async def list_parted(self, before: datetime) -> AsyncIterator[set[str]]:
        """Yield the ids of uploads with parts that were stored before a time, a page at a time."""
        async for page in self._objects.pages("uploads/"):
            yield {found.key.split("/")[1] for found in page if found.modified < before}

    # Copies

    async def _fetch(self, key: str, path: Path) -> None:
        """Make an object local, once for all that ask. Raises `OSError`."""
        if await self.exists(path):
            return
        task = self._fetching.get(path)
        if task is None:
            task = self._fetching[path] = asyncio.create_task(self._copy(key, path), name=f"fetch {key}")
            task.add_done_callback(lambda task: self._fetched(path, task))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if not task.cancelled() or waiter is None or waiter.cancelling():
                raise
            raise FilesUnavailable("the copy was given up with its job") from None

    def _fetched(self, path: Path, task: asyncio.Task[None]) -> None:
        del self._fetching[path]
        if not task.cancelled():
            task.exception()  # which nobody may have waited for

    async def _copy(self, key: str, path: Path) -> None:
        found = await self._objects.find(key)
        await asyncio.to_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        async with new_file(path, durable=False) as file:
            async for piece in self._objects.read(key, 0, found.size):
                await file.write(piece)

    async def _end_fetches(self, prompt_id: str) -> None:
        tasks = [task for path, task in self._fetching.items() if path.parent.name == prompt_id]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _own_folders(self) -> tuple[Path, ...]:
        return (self._inputs, self._scratch, *super()._own_folders())

    async def copied_jobs(self) -> set[str]:
        """Return the ids of the jobs of whose files this node has copies, but for those that are being received."""
        return await super().copied_jobs() - self._uploading

    async def delete_copies(self, prompt_ids: Iterable[str]) -> None:
        """Delete this node's copies of the files of jobs."""
        for prompt_id in (ids := list(prompt_ids)):
            await self._end_fetches(prompt_id)
        await super().delete_copies(ids)

    async def delete_scratch(self, prompt_id: str) -> None:
        """Delete the files that only a running job needs, in the embedded engine too."""
        await super().delete_scratch(prompt_id)
        with suppress(FilesUnavailable):  # they go later
            await self._delete(f"segments/{prompt_id}/", _preview(prompt_id))

    # Finished segments and previews

    async def keep_segment(self, segment: Segment) -> None:
        """Store the checked output of an attempt at a segment, before it is committed. Raises `OSError`."""
        path = self.segment(segment)
        await self._objects.put_file(f"segments/{segment.prompt_id}/{path.name}", path)

    async def fetch_segments(self, segments: Sequence[Segment]) -> list[Path]:
        """Make the outputs of finished segments local; return their paths, in order. Raises `OSError`."""
        paths = [self.finished_segment(segment) for segment in segments]
        limit = asyncio.Semaphore(FETCHES)

        async def fetch(path: Path) -> None:
            async with limit:
                await self._fetch(f"segments/{path.parent.name}/{path.name}", path)

        for result in await asyncio.gather(*map(fetch, paths), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        return paths

    async def put_preview(self, prompt_id: str, image: bytes) -> None:
        """Keep the newest preview of a job where other nodes find it. Raises `OSError`."""
        async with asyncio.timeout(PREVIEW_S):
            await self._objects.put(_preview(prompt_id), image)

    async def delete_preview(self, prompt_id: str) -> None:
        """Delete the preview of a job that has ended. Raises `OSError`; it goes later then."""
        await self._delete(_preview(prompt_id))

    async def preview(self, prompt_id: str) -> bytes | None:
        """Return the newest preview of a job that runs at another node; None when there is none. Raises `OSError`."""
        try:
            return await self._objects.get(_preview(prompt_id))
        except FileNotFoundError:
            return None

    # Thumbnails

    async def put_thumbnail(self, prompt_id: str, name: str, image: bytes) -> None:
        """Keep a thumbnail of a job. Raises `OSError`."""
        await self._objects.put(f"thumbnails/{prompt_id}/{name}", image)

    async def thumbnail(self, prompt_id: str, name: str) -> bytes | None:
        """Return a thumbnail of a job; None when none is kept. Raises `OSError`."""
        try:
            return await self._objects.get(f"thumbnails/{prompt_id}/{name}")
        except FileNotFoundError:
            return None

    async def delete_thumbnails(self, prompt_id: str) -> None:
        """Delete the thumbnails of a job. Raises `OSError`; they go later then."""
        await self._delete(f"thumbnails/{prompt_id}/")

    # Results

    async def keep_result(self, prompt_id: str, epoch: int, filename: str, sha256: str) -> None:
        """Store a job's joined video under a key of its own. Those of former holders are deleted."""
        name = _name(filename)
        content_type = RESULT_TYPES[PurePath(name).suffix]
        attributes = {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="{name}"'}
        key = f"results/{prompt_id}/{result_name(epoch, sha256)}"
        await self._objects.put_file(key, self.joined(prompt_id, epoch), attributes)
        with suppress(FilesUnavailable):  # they go with the job
            await self.discard_result(prompt_id, epoch - 1, filename)

    async def discard_result(self, prompt_id: str, epoch: int, filename: str) -> None:
        """Delete what the holder of the lease from `epoch` on, and those before it, kept without a commit."""
        keys = [found.key async for found in self._results_of(prompt_id) if result_epoch(_name(found.key)) <= epoch]
        await self._delete(*keys)

    async def find_result(self, job: Job) -> ObjectFile | None:
        """Return a job's committed result; None when it is gone. Raises `OSError`."""
        async for found in self._results_of(job.prompt_id):
            if is_result_of(job, _name(found.key)):
                return ObjectFile(self._objects, found.key, found.size, found.modified, job.result_sha256 or "")
        return None

    async def _results_of(self, prompt_id: str) -> AsyncIterator[StoredObject]:
        async for page in self._objects.pages(f"results/{prompt_id}/"):
            for found in page:
                yield found

    async def delete_result(self, prompt_id: str, filename: str) -> None:
        """Delete all that was kept as a result of a job, and its thumbnails."""
        await self._delete(f"results/{prompt_id}/", f"thumbnails/{prompt_id}/")

    # Leftovers of a crash

    async def mark_erasure(self, prompt_id: str) -> None:
        """Mark a job that is being erased, by this node."""
        await self._objects.put(_mark(prompt_id, ERASURE), self._node.encode())

    async def unmark_erasure(self, prompt_id: str) -> None:
        """Remove the mark of a job that was erased."""
        with suppress(FilesUnavailable):  # it goes later
            await self._delete(_mark(prompt_id, ERASURE))

    async def list_marked(self, mark: str) -> set[str]:
        """Return the ids of the jobs that have a mark: `UPLOAD` or `ERASURE`."""
        return {
            _name(found.key).removesuffix(mark)
            async for page in self._objects.pages("marks/")
            for found in page
            if found.key.endswith(mark)
        }

    async def is_own_mark(self, prompt_id: str, mark: str) -> bool:
        """Return whether this node has set a mark, or another that does not come back."""
        try:
            is_own = (await self._objects.get(_mark(prompt_id, mark))).decode() == self._node
        except FileNotFoundError:
            return False
        return is_own or await self.is_abandoned(prompt_id, mark)

    async def is_abandoned(self, prompt_id: str, mark: str) -> bool:
        """Return whether a mark was set so long ago that the node which set it does not come back."""
        try:
            found = await self._objects.find(_mark(prompt_id, mark))
        except FileNotFoundError:
            return False
        return datetime.now(UTC) - found.modified > timedelta(seconds=ABANDONED_S)

    async def list_jobs(self) -> AsyncIterator[set[str]]:
        """Yield the ids of all jobs that have files, a page at a time; an id may come again."""
        async for page in super().list_jobs():
            yield page
        for prefix in ("inputs/", "segments/", "previews/", "thumbnails/"):
            async for objects in self._objects.pages(prefix):
                yield {found.key.split("/")[1] for found in objects}

    async def list_results(self) -> AsyncIterator[set[str]]:
        """Yield the ids of all jobs with a result, a page at a time; an id may come again."""
        async for objects in self._objects.pages("results/"):
            yield {found.key.split("/")[1] for found in objects}


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _input(prompt_id: str, file: str) -> str:
    # Without the extension, which is known only once the first bytes are there.
    return f"inputs/{prompt_id}/{file.partition('.')[0]}"


def _preview(prompt_id: str) -> str:
    return f"previews/{prompt_id}"


def _mark(prompt_id: str, mark: str) -> str:
    return f"marks/{prompt_id}{mark}"
