"""The files of jobs in the local data folder. No other module knows their paths.

Names are made from ids and checked output names only, never from a client's path. All disk access runs in threads, so
that the event loop waits for no disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import uuid4

from .. import durable
from ..jobs import Inputs, Job, Segment, stored_name
from ..uploads import Part
from .parts import LocalPartWriter, PartWriter, read_file
from .writer import FileWriter

P = ParamSpec("P")
R = TypeVar("R")

LOCAL_NODE = "local"
"""The name of the one process that uses a data folder alone."""
ENGINE_FOLDERS = ("input", "temp", "output")
"""Folders of the embedded engine that hold a subfolder for each job. Results are in `temp`, older jobs' in `output`."""
LOST_STAMP = "%Y%m%dT%H%M%S.%fZ"
"""Format of the names of the folders in `lost+found`: the time, in UTC, at which files were moved there."""
UPLOAD, ERASURE = ".upload", ".erasure"
"""Marks of a job: its inputs are still being received; all its files are being erased."""
CLAIM = "published"
"""Mark in a job's scratch folder: the file under the name of its result is its own."""

UNFINISHED = (".*", "*-source", "portrait-*.png")
"""Names in scratch folders of files that exist only while they are written or uploaded."""


class RemoteFile(Protocol):
    """A file of a job that is not on this machine."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def modified(self) -> datetime:
        """The time at which it was stored."""

    @property
    def etag(self) -> str:
        """Its entity tag, without quotes."""

    def read(self, start: int, end: int) -> AsyncGenerator[memoryview]:
        """Yield the bytes from `start` to `end`. Raises `OSError`."""

    async def sign(self, lifetime_s: float) -> str:
        """Return a URL under which anybody can read the file for a time."""


def in_thread(work: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn a function that blocks into a coroutine function that runs it in a thread."""

    @wraps(work)
    async def run(*arguments: P.args, **named: P.kwargs) -> R:
        return await asyncio.to_thread(work, *arguments, **named)

    return run


_QUESTIONS = ThreadPoolExecutor(2, "question")
"""Threads for what `/health` asks, so that a crowd of uploads that begin keeps no answer waiting."""


def in_thread_at_once(work: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn a function that asks a disk something into a coroutine function, whatever else other threads have to do."""

    @wraps(work)
    async def run(*arguments: P.args, **named: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(_QUESTIONS, partial(work, *arguments, **named))

    return run


class Files:
    """The folders of one data directory, readable by their owner only.

    Where the files of jobs lie elsewhere, a subclass keeps them there: before work it makes local what is needed, and
    after it stores what was made. Here nothing is copied: the paths are those of the files themselves.
    """

    is_shared = False
    """True where several nodes may use the same files."""

    def __init__(self, data_dir: Path, node: str = LOCAL_NODE) -> None:
        """`node` is the name of this process among those that share the folder."""
        self.root = data_dir
        self._node = node
        self.database = data_dir / "faceswap.db"
        self.lock = data_dir / "lock"
        self.engine = data_dir / "engine"
        self.lost = data_dir / "lost+found"
        self._inputs = data_dir / "inputs"
        self._scratch = data_dir / "work"
        self._results = data_dir / "outputs"
        self._uploads = data_dir / "uploads"
        self._thumbnails = data_dir / "thumbnails"

    def create(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.root, self._inputs, self._scratch, self._results, self._uploads, self.engine):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self.root.glob(f"{self.database.name}*"):  # a copy or a restored backup may be readable by others
            file.chmod(0o600)

    async def start(self) -> None:
        """Make ready for work. Raises `OSError` with the reason, `ConfigError` where a setting is wrong."""
        await asyncio.to_thread(self.create)

    async def check(self) -> None:
        """Check that files can be written, while a service may use them. Raises as `start` does."""
        await asyncio.to_thread(self._check_folders)

    def _check_folders(self) -> None:
        for folder in {self.root, self._results.parent}:
            with tempfile.TemporaryFile(dir=folder):
                pass

    async def close(self) -> None:
        """End what is under way, at the end of the service."""

    async def is_available(self) -> bool:
        """Return whether the files can be reached now."""
        return True

    # Paths, made without disk access

    def inputs(self, prompt_id: str) -> Path:
        """Return the folder of a job's inputs."""
        return self._inputs / prompt_id

    def input(self, prompt_id: str, file: str) -> Path:
        """Return the path of one of a job's inputs."""
        return self._inputs / prompt_id / file

    def video(self, prompt_id: str, inputs: Inputs) -> Path:
        """Return the path of a job's video."""
        return self.input(prompt_id, inputs.video_file)

    def images(self, prompt_id: str, inputs: Inputs) -> list[Path]:
        """Return the paths of a job's pictures of faces."""
        return [self.input(prompt_id, image.file) for image in inputs.images]

    def segment(self, segment: Segment) -> Path:
        """Return the path of the output of an attempt at a segment, for one holder of its backend's lease only."""
        return self._scratch / segment.prompt_id / f"{segment.number:05d}-{segment.attempt}-{segment.epoch}.mp4"

    def piece(self, segment: Segment) -> Path:
        """Return the path of the piece of the video for an attempt at a segment, which exists while it is uploaded."""
        path = self.segment(segment)
        return path.with_name(f"{path.stem}-source")

    def prepared(self, prompt_id: str) -> Path:
        """Return the path of the copy of a job's video that pieces are cut from."""
        return self._scratch / prompt_id / "prepared.mp4"

    def still(self, prompt_id: str) -> Path:
        """Return the path of the picture that a job changes, as it goes to the engine."""
        return self._scratch / prompt_id / "still.png"

    def portrait(self, prompt_id: str) -> Path:
        """Return a new path for a face that is cut out of a job's picture, which exists while it is uploaded."""
        return self._scratch / prompt_id / f"portrait-{uuid4().hex}.png"

    def finished_segment(self, segment: Segment) -> Path:
        """Return the path of a finished segment's output."""
        return self._scratch / segment.prompt_id / (segment.output_file or "")

    def joined(self, prompt_id: str, epoch: int) -> Path:
        """Return the path of a job's joined segments, for the holder of the lease on that from `epoch` on."""
        return self._scratch / prompt_id / f"joined-{epoch}.mp4"

    def result(self, filename: str) -> Path:
        """Return the path of a result by the name under which it is kept: `Job.stored_result`."""
        return self._results / filename

    def engine_root(self, number: int) -> Path:
        """Return the folder of one of the embedded engines, counted from 1."""
        return self.engine if number == 1 else self.root / f"{self.engine.name}-{number}"

    def _engine_folders(self, kinds: Sequence[str] = ENGINE_FOLDERS) -> list[Path]:
        """Return the folders that hold a subfolder for each job, of every embedded engine that there ever was."""
        roots = (self.engine, *sorted(self.root.glob(f"{self.engine.name}-*")))
        return [root / kind for root in roots for kind in kinds]

    def _folders_of(self, prompt_id: str) -> tuple[Path, ...]:
        # Uploads to the engine are in subfolders named by the job's id.
        return (
            self.inputs(prompt_id),
            self._scratch / prompt_id,
            self._thumbnails / prompt_id,
            *(folder / prompt_id for folder in self._engine_folders()),
        )

    def _mark(self, prompt_id: str, mark: str) -> Path:
        return self._inputs / f"{prompt_id}{mark}"

    # Single files

    @in_thread
    def exists(self, path: Path) -> bool:
        """Return whether a file exists."""
        return path.is_file()

    @in_thread
    def identity(self, path: Path) -> tuple[int, int] | None:
        """Return what tells a file from one that takes its place; None where there is none."""
        with suppress(FileNotFoundError):
            found = path.stat()
            return found.st_ino, found.st_mtime_ns
        return None

    @in_thread
    def delete(self, path: Path) -> None:
        """Delete a file, if it exists."""
        path.unlink(missing_ok=True)

    @in_thread_at_once
    def free_bytes(self) -> int:
        """Return the free space on the disk, in bytes."""
        return shutil.disk_usage(self.root).free

    # Inputs

    @in_thread
    def begin_upload(self, prompt_id: str) -> None:
        """Make the folder of a job's inputs, with the mark `UPLOAD`: after a crash no client was promised this job."""
        self._inputs.mkdir(parents=True, exist_ok=True)
        mark = self._mark(prompt_id, UPLOAD)
        mark.touch(mode=0o600)
        try:
            mark.write_text(self._node, encoding="utf-8")
            self.inputs(prompt_id).mkdir(mode=0o700)
        except OSError:
            mark.unlink()
            raise

    def new_input(self, prompt_id: str, name: str) -> FileWriter:
        """Return a writer for a new file among a job's inputs."""
        return FileWriter(self.input(prompt_id, name))

    @in_thread
    def sync_upload(self, prompt_id: str) -> None:
        """Sync the names of a job's inputs and of their folder. The inputs themselves are synced already."""
        durable.sync(self.inputs(prompt_id), self._inputs)

    @in_thread
    def accept_upload(self, prompt_id: str) -> None:
        """Remove the mark of an upload after its job was committed."""
        with suppress(OSError):  # the next start removes it
            self._mark(prompt_id, UPLOAD).unlink()

    @in_thread
    def delete_upload(self, prompt_id: str) -> None:
        """Delete the inputs of a job that was never committed, their mark last."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.inputs(prompt_id))
        self._mark(prompt_id, UPLOAD).unlink(missing_ok=True)

    @in_thread
    def fetch_inputs(self, prompt_id: str, inputs: Inputs) -> bool:
        """Make a job's inputs local; return False when they are gone."""
        paths = [self.video(prompt_id, inputs), *self.images(prompt_id, inputs)]
        return all(path.is_file() for path in paths)

    @in_thread
    def find_input(self, prompt_id: str, file: str, sha256: str) -> Path | RemoteFile | None:
        """Return one of a job's inputs by its name, with its digest; None when it is gone."""
        path = self.input(prompt_id, file)
        return path if path.is_file() else None

    async def local_video(self, prompt_id: str, inputs: Inputs) -> Path:
        """Make a job's video local; return its path. Raises `OSError`."""
        return self.video(prompt_id, inputs)

    @in_thread
    def delete_inputs(self, prompt_id: str) -> None:
        """Delete a job's inputs, here and in the embedded engine, its thumbnails and its scratch folder.

        Raises `OSError` when something is left.
        """
        for folder in self._folders_of(prompt_id):
            delete_folder(folder)

    @in_thread
    def link_input(self, prompt_id: str, file: str, path: Path) -> bool:
        """Give an input of a job a second name, at `path`; False where that is not possible."""
        return _link(self.input(prompt_id, file), path)

    @in_thread
    def link(self, path: Path, other: Path) -> bool:
        """Give a file of this machine a second name, in the place of what had it; False where that is not possible."""
        with suppress(OSError):
            other.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            other.unlink(missing_ok=True)
            return _link(path, other)
        return False

    def read_input(self, prompt_id: str, file: str) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes of one of a job's inputs. Raises `OSError`, `FileNotFoundError` when it is gone."""
        return read_file(self.input(prompt_id, file))

    # Resumable uploads, each in parts, which are never changed once they are stored

    def new_part_writer(self, upload_id: str) -> PartWriter:
        """Return a writer of more bytes of an upload."""
        return LocalPartWriter(self._uploads / upload_id)

    async def read_parts(self, upload_id: str, parts: Iterable[Part]) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes of parts of an upload. Raises `OSError`, `FileNotFoundError` when they are gone."""
        for part in parts:
            async with aclosing(read_file(self._uploads / upload_id / part.name, part.size)) as pieces:
                async for piece in pieces:
                    yield piece

    @in_thread
    def link_part(self, upload_id: str, part: Part, path: Path) -> bool:
        """Give a part of an upload a second name, at `path`; False where that is not possible."""
        return _link(self._uploads / upload_id / part.name, path)

    @in_thread
    def delete_parts(self, upload_id: str) -> None:
        """Delete all that there is of an upload. Raises `OSError` when something is left."""
        delete_folder(self._uploads / upload_id)

    async def list_parted(self, before: datetime) -> AsyncIterator[set[str]]:
        """Yield the ids of the uploads with bytes to which none were added since a time, a page at a time."""
        yield await asyncio.to_thread(self._old_uploads, before.timestamp())

    def _old_uploads(self, before_s: float) -> set[str]:
        with suppress(FileNotFoundError), os.scandir(self._uploads) as entries:
            return {entry.name for entry in entries if entry.stat().st_mtime < before_s}
        return set()

    # Files that are only looked at: on this machine, and gone soon

    def looked_at(self) -> Files:
        """Return files of which nothing is kept."""
        return _LookedAt(self.root / "looks", self._node)

    @in_thread
    def delete_looked_at(self) -> None:
        """Delete what a crash left of them."""
        shutil.rmtree(self.root / "looks", ignore_errors=True)

    # Scratch: a job's parts while they are downloaded, cut, prepared and joined

    @in_thread
    def make_scratch(self, prompt_id: str) -> None:
        """Make a job's scratch folder, unless it exists."""
        (self._scratch / prompt_id).mkdir(mode=0o700, exist_ok=True)

    @in_thread
    def delete_scratch(self, prompt_id: str) -> None:
        """Delete the files that only a running job needs, in the embedded engine too."""
        shutil.rmtree(self._scratch / prompt_id, ignore_errors=True)
        for folder in self._engine_folders(ENGINE_FOLDERS[1:]):
            shutil.rmtree(folder / prompt_id, ignore_errors=True)

    @in_thread
    def delete_unfinished(self) -> set[str]:
        """Delete what a crash left of files that were being written or uploaded, while no job runs yet.

        Returns the ids of the jobs that have scratch folders.
        """
        for pattern in UNFINISHED:
            for path in self._scratch.glob(f"*/{pattern}"):
                path.unlink(missing_ok=True)
        return set(folders_in(self._scratch))

    async def copied_jobs(self) -> set[str]:
        """Return the ids of the jobs of whose files this node has copies, but for those that are being received."""
        return set()

    async def delete_copies(self, prompt_ids: Iterable[str]) -> None:
        """Delete this node's copies of the files of jobs."""

    # Finished segments and previews

    async def keep_segment(self, segment: Segment) -> None:
        """Store the checked output of an attempt at a segment, before it is committed. Raises `OSError`."""

    async def fetch_segments(self, segments: Sequence[Segment]) -> list[Path]:
        """Make the outputs of finished segments local; return their paths, in order. Raises `OSError`."""
        return [self.finished_segment(segment) for segment in segments]

    async def put_preview(self, prompt_id: str, image: bytes) -> None:
        """Keep the newest preview of a job where other nodes find it. Raises `OSError`."""

    async def delete_preview(self, prompt_id: str) -> None:
        """Delete the preview of a job that has ended. Raises `OSError`."""

    async def preview(self, prompt_id: str) -> bytes | None:
        """Return the newest preview of a job that runs at another node; None when there is none."""
        return None

    # Thumbnails, which can be made again

    @in_thread
    def put_thumbnail(self, prompt_id: str, name: str, image: bytes) -> None:
        """Keep a thumbnail of a job. Raises `OSError`."""
        folder = self._thumbnails / prompt_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f".{name}-{self._node}"
        partial.write_bytes(image)
        partial.replace(folder / name)

    @in_thread
    def thumbnail(self, prompt_id: str, name: str) -> bytes | None:
        """Return a thumbnail of a job; None when none is kept. Raises `OSError`."""
        try:
            return (self._thumbnails / prompt_id / name).read_bytes()
        except FileNotFoundError:
            return None

    @in_thread
    def delete_thumbnails(self, prompt_id: str) -> None:
        """Delete the thumbnails of a job. Raises `OSError` when something is left."""
        delete_folder(self._thumbnails / prompt_id)

    # Results

    @in_thread
    def keep_result(self, prompt_id: str, epoch: int, filename: str, sha256: str) -> None:
        """Move a job's joined video to its public name, and sync the name. Its digest is `sha256`, hexadecimal.

        A result that the same job kept before is replaced. Raises `FileExistsError` for any other file of that name.
        """
        result, claim = self.result(filename), self._scratch / prompt_id / CLAIM
        if not result.parent.is_dir():
            result.parent.mkdir(mode=0o700, exist_ok=True)
            durable.sync(self._results)
        try:
            result.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            if not claim.exists():
                raise
        else:
            try:
                claim.touch(mode=0o600)
            except OSError:
                result.unlink()
                raise
        durable.rename(self.joined(prompt_id, epoch), result)

    @in_thread
    def find_result(self, job: Job) -> Path | RemoteFile | None:
        """Return the path of a job's committed result; None when it is gone."""
        path = self.result(job.stored_result)
        return path if path.is_file() else None

    @in_thread
    def discard_result(self, prompt_id: str, epoch: int, filename: str) -> None:
        """Delete what the holder of the lease from `epoch` on, and those before it, joined and kept of a job.

        The claim goes first: after a crash a result without one is deleted as one that was never committed.
        """
        scratch = self._scratch / prompt_id
        for path in (scratch / CLAIM, *scratch.glob("joined-*"), self.result(filename)):
            path.unlink(missing_ok=True)

    @in_thread
    def delete_result(self, prompt_id: str, filename: str) -> None:
        """Delete a job's result and its thumbnails, if they exist."""
        self.result(filename).unlink(missing_ok=True)
        delete_folder(self._thumbnails / prompt_id)

    async def list_results(self) -> AsyncIterator[set[str]]:
        """Yield the names of all results, incomplete ones included; where files are shared, the ids of their jobs.

        They come a page at a time, and may come again.
        """
        yield await asyncio.to_thread(self._result_names)

    def _result_names(self) -> set[str]:
        names = set()
        with os.scandir(self._results) as entries:
            for entry in entries:
                if entry.is_dir():
                    names |= {stored_name(entry.name, path.name) for path in Path(entry.path).iterdir()}
                else:
                    names.add(entry.name)
        return names

    # Leftovers of a crash

    @in_thread
    def mark_erasure(self, prompt_id: str) -> None:
        """Mark a job that is being erased."""
        self._mark(prompt_id, ERASURE).touch(mode=0o600)

    @in_thread
    def unmark_erasure(self, prompt_id: str) -> None:
        """Remove the mark of a job that was erased."""
        self._mark(prompt_id, ERASURE).unlink(missing_ok=True)

    @in_thread
    def list_marked(self, mark: str) -> set[str]:
        """Return the ids of the jobs that have a mark: `UPLOAD` or `ERASURE`."""
        return {path.name.removesuffix(mark) for path in self._inputs.glob(f"*{mark}")}

    @in_thread
    def is_own_mark(self, prompt_id: str, mark: str) -> bool:
        """Return whether this node has set a mark, or the mark does not tell: another's work may still go on."""
        path = self._mark(prompt_id, mark)
        return path.is_file() and path.read_text(encoding="utf-8") in ("", self._node)

    async def is_abandoned(self, prompt_id: str, mark: str) -> bool:
        """Return whether a mark was set so long ago that the node which set it does not come back."""
        return False

    async def list_jobs(self) -> AsyncIterator[set[str]]:
        """Yield the ids of all jobs that have files, in the embedded engine too, a page at a time.

        An id may come again.
        """
        yield await asyncio.to_thread(self._job_folders)

    def _job_folders(self) -> set[str]:
        parents = (self._inputs, self._scratch, self._thumbnails, *self._engine_folders())
        return {name for parent in parents for name in folders_in(parent)}

    @in_thread
    def move_to_lost(self, prompt_ids: Iterable[str], filenames: Iterable[str], now: datetime) -> list[Path]:
        """Move the folders of jobs and results into a new folder in `lost+found`; return their new paths.

        Empty folders are deleted. Raises `OSError`.
        """
        paths = [folder for prompt_id in prompt_ids for folder in self._folders_of(prompt_id) if folder.is_dir()]
        paths += [self.result(filename) for filename in filenames]
        moved = []
        for path in paths:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
                continue
            target = self.lost / now.strftime(LOST_STAMP) / path.relative_to(self.root)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            moved.append(path.rename(target))
        return moved

    @in_thread
    def delete_lost(self, before: datetime) -> None:
        """Delete all that was moved to `lost+found` before a time; leave files that a file system check put there."""
        try:
            found = list(self.lost.iterdir())
        except (FileNotFoundError, PermissionError):
            return  # no permission: the data folder is a disk of its own, and nothing was moved there
        for folder in found:
            with suppress(ValueError):
                if datetime.strptime(folder.name, LOST_STAMP).replace(tzinfo=UTC) <= before:
                    shutil.rmtree(folder)


class _LookedAt(Files):
    """Files that a power cut may take."""

    def new_input(self, prompt_id: str, name: str) -> FileWriter:
        """Return a writer for a new file."""
        return FileWriter(self.input(prompt_id, name), durable=False)

    async def sync_upload(self, prompt_id: str) -> None:
        """Do nothing."""


def delete_folder(folder: Path) -> None:
    """Delete a folder, if it exists, with all that is in it. Raises `OSError` when something is left."""
    shutil.rmtree(folder, ignore_errors=True)  # others may delete in it too, or end a file that they are writing
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _link(source: Path, target: Path) -> bool:
    with suppress(OSError):  # some file systems have no second names
        target.hardlink_to(source)
        return True
    return False


def folders_in(parent: Path) -> Iterator[str]:
    """Yield the names of the folders in a folder, if it exists."""
    if parent.is_dir():
        yield from (folder.name for folder in parent.iterdir() if folder.is_dir())
