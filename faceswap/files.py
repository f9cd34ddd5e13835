"""The files of jobs in the local data folder: the only place that knows where bytes lie.

Names come from ids and checked output names only, never from a client's path. Whatever touches the disk runs in a
thread: the event loop waits for no disk.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import aiofiles.os
from aiofiles import threadpool
from aiofiles.threadpool.binary import AsyncFileIO

from . import durable
from .jobs import Inputs, Segment

P = ParamSpec("P")
R = TypeVar("R")

ENGINE_FOLDERS = ("input", "temp", "output")
"""Folders of the embedded engine where a job has one of its own: results lie in `temp`, older jobs' in `output`."""
LOST_STAMP = "%Y%m%dT%H%M%S.%fZ"
"""Format of the names of the folders in `lost+found`: the time, in UTC, their content was put there."""
UPLOAD, ERASURE = ".upload", ".erasure"
"""Marks of a job: its inputs are still coming in; everything of it is being erased."""
PIECE_BYTES = 1024 * 1024
"""Size of the pieces that are handed to a thread. For smaller ones the hand-over costs more than the write."""
SYNC_BYTES = 16 * 1024 * 1024
"""After so many bytes a sync begins beside the receiving, so that few are left to be synced at the end."""
_TRANSFERS = ThreadPoolExecutor(16, "transfer")
"""Threads of their own for pieces and syncs: nothing quick has to wait behind a slow disk for a thread."""


def in_thread(work: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a method that waits for the disk one that does so in a thread."""

    @wraps(work)
    async def run(*arguments: P.args, **named: P.kwargs) -> R:
        return await asyncio.to_thread(work, *arguments, **named)

    return run


class _HashedFile(io.FileIO):
    """A new file, for its owner only, that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))
        self.sha256 = sha256()

    def write(self, data: Any, /) -> int:
        """Write all of `data`."""
        self.sha256.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) or 0 :]
        return len(data)

    def sync(self) -> None:
        """Wait until the disk has what was written before."""
        os.fdatasync(self.fileno())


class FileWriter:
    """A file that grows from a stream, hashed and synced on the way.

    A thread writes a piece while the next one comes in, and another syncs what was written before; no more than one
    piece and one sync are under way. An error of either is raised by a later call. The file is closed only when the
    threads have left it, whatever was cancelled: a descriptor that was closed may be another file's by then.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the name that the file has until it is finished."""
        self.size = 0
        """Bytes that have come in."""
        self._path = path
        self._gathered = bytearray()
        self._unsynced = 0
        self._opening: asyncio.Future[_HashedFile] | None = None
        self._writing: asyncio.Future[int] | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    @property
    def sha256(self) -> str:
        """Digest of a finished file, hexadecimal."""
        assert self._opening is not None
        return self._opening.result().sha256.hexdigest()

    async def write(self, data: bytes) -> None:
        """Add bytes. The first ones create the file. Raises `OSError`, for earlier bytes too."""
        await self._opened()
        self.size += len(data)
        self._gathered += data
        if len(self._gathered) >= PIECE_BYTES:
            await self._write_gathered()

    async def finish(self, name: str) -> None:
        """Have the disk hold all bytes, close the file and name it; the name is not synced. Raises `OSError`."""
        raw = await self._opened()
        await self._write_gathered()
        await self._written()
        if self._syncing is not None:
            await asyncio.shield(self._syncing)
        self._syncing = _in_transfers(raw.sync)
        await asyncio.shield(self._syncing)
        await self.close()
        await aiofiles.os.replace(self._path, self._path.with_name(name))

    async def close(self) -> None:
        """Close the file once no thread works on it. A second call waits for the same."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def discard(self) -> None:
        """Close the file and delete it, where it has no name yet."""
        await self.close()
        with suppress(OSError):
            await aiofiles.os.unlink(self._path)

    async def _opened(self) -> _HashedFile:
        if self._opening is None:
            self._opening = _in_transfers(partial(_HashedFile, self._path))
        return await asyncio.shield(self._opening)

    async def _write_gathered(self) -> None:
        """Begin with a piece when the one before is written."""
        await self._written()
        file: AsyncFileIO = threadpool.wrap(await self._opened(), executor=_TRANSFERS)
        piece, self._gathered = self._gathered, bytearray()
        self._unsynced += len(piece)
        self._writing = asyncio.ensure_future(file.write(piece))

    async def _written(self) -> None:
        """Wait for the piece that is under way; where much is unsynced, begin a sync when the one before has ended."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._unsynced >= SYNC_BYTES:
            if self._syncing is not None:
                await asyncio.shield(self._syncing)
            self._unsynced = 0
            self._syncing = _in_transfers((await self._opened()).sync)

    async def _close(self) -> None:
        under_way = [work for work in (self._opening, self._writing, self._syncing) if work is not None]
        await asyncio.gather(*under_way, return_exceptions=True)
        if self._opening is not None and self._opening.exception() is None:
            await aiofiles.os.wrap(self._opening.result().close)()


def _in_transfers(work: Callable[[], R]) -> asyncio.Future[R]:
    return asyncio.get_running_loop().run_in_executor(_TRANSFERS, work)


@asynccontextmanager
async def new_file(destination: Path) -> AsyncIterator[FileWriter]:
    """Fill a file that takes its name at the end of the block, whole and synced; after an exception it is gone."""
    writer = FileWriter(destination.with_name(f".{destination.name}.part"))
    try:
        yield writer
        await writer.finish(destination.name)
        await asyncio.to_thread(durable.sync, destination.parent)
    except BaseException:
        await asyncio.shield(writer.discard())
        raise


class Files:
    """The folders of one data directory, all readable by their owner only."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir
        self.database = data_dir / "faceswap.db"
        self.lock = data_dir / "lock"
        self.engine = data_dir / "engine"
        self.lost = data_dir / "lost+found"
        self._inputs = data_dir / "inputs"
        self._scratch = data_dir / "work"
        self._results = data_dir / "outputs"

    def create(self) -> None:
        """Make what is missing."""
        for folder in (self.root, self._inputs, self._scratch, self._results, self.engine):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self.root.glob(f"{self.database.name}*"):  # what a copy or a restored backup may have opened
            file.chmod(0o600)

    # Paths: none of these looks at the disk.

    def inputs(self, prompt_id: str) -> Path:
        """The folder of a job's inputs."""
        return self._inputs / prompt_id

    def input(self, prompt_id: str, file: str) -> Path:
        """One of a job's inputs."""
        return self._inputs / prompt_id / file

    def video(self, prompt_id: str, inputs: Inputs) -> Path:
        """A job's video."""
        return self.input(prompt_id, inputs.video_file)

    def image(self, prompt_id: str, inputs: Inputs) -> Path:
        """A job's face."""
        return self.input(prompt_id, inputs.image_file)

    def segment(self, segment: Segment) -> Path:
        """The output of an attempt at a segment."""
        return self._scratch / segment.prompt_id / f"{segment.number:05d}-{segment.attempt}.mp4"

    def piece(self, segment: Segment) -> Path:
        """The part of the video that an attempt at a segment needs, for as long as it is uploaded."""
        return self._scratch / segment.prompt_id / f"{segment.number:05d}-{segment.attempt}-source"

    def prepared(self, prompt_id: str) -> Path:
        """A job's video made anew so that pieces can be cut from it."""
        return self._scratch / prompt_id / "prepared.mp4"

    def finished_segment(self, segment: Segment) -> Path:
        """A finished segment's output."""
        return self._scratch / segment.prompt_id / (segment.output_file or "")

    def joined(self, prompt_id: str) -> Path:
        """A job's segments, joined."""
        return self._scratch / prompt_id / "joined.mp4"

    def result(self, filename: str) -> Path:
        """A result."""
        return self._results / filename

    def _folders_of(self, prompt_id: str) -> tuple[Path, ...]:
        # The engine's folders are its own; what we uploaded lies under the job's id there.
        return (
            self.inputs(prompt_id),
            self._scratch / prompt_id,
            *(self.engine / kind / prompt_id for kind in ENGINE_FOLDERS),
        )

    def _mark(self, prompt_id: str, mark: str) -> Path:
        return self._inputs / f"{prompt_id}{mark}"

    # Single files

    @in_thread
    def exists(self, path: Path) -> bool:
        """Tell whether there is such a file."""
        return path.is_file()

    @in_thread
    def delete(self, path: Path) -> None:
        """Delete a file, which may be gone."""
        path.unlink(missing_ok=True)

    @in_thread
    def free_bytes(self) -> int:
        """Return the room that is left on the disk."""
        return shutil.disk_usage(self.root).free

    # Inputs

    @in_thread
    def begin_upload(self, prompt_id: str) -> None:
        """Make the folder of a job's inputs, marked as an upload: after a crash it was never promised anything."""
        self._inputs.mkdir(parents=True, exist_ok=True)
        mark = self._mark(prompt_id, UPLOAD)
        mark.touch(mode=0o600)
        try:
            self.inputs(prompt_id).mkdir(mode=0o700)
        except OSError:
            mark.unlink()
            raise

    @in_thread
    def sync_upload(self, prompt_id: str) -> None:
        """Sync the names of a job's inputs, which are synced themselves, and of their folder."""
        durable.sync(self.inputs(prompt_id), self._inputs)

    @in_thread
    def accept_upload(self, prompt_id: str) -> None:
        """Remove the mark of an upload whose job was committed."""
        with suppress(OSError):  # it goes at the next start
            self._mark(prompt_id, UPLOAD).unlink()

    @in_thread
    def delete_upload(self, prompt_id: str) -> None:
        """Delete inputs that no job was made of, their mark last."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.inputs(prompt_id))
        self._mark(prompt_id, UPLOAD).unlink(missing_ok=True)

    @in_thread
    def delete_inputs(self, prompt_id: str) -> None:
        """Delete a job's inputs, here and in the embedded engine, and its scratch folder."""
        for folder in self._folders_of(prompt_id):
            shutil.rmtree(folder, ignore_errors=True)

    # Scratch: where a job's parts are fetched, cut, prepared and joined

    @in_thread
    def make_scratch(self, prompt_id: str) -> None:
        """Make a job's scratch folder, unless it is there."""
        (self._scratch / prompt_id).mkdir(mode=0o700, exist_ok=True)

    @in_thread
    def delete_scratch(self, prompt_id: str) -> None:
        """Delete what only a running job needs, in the embedded engine too."""
        shutil.rmtree(self._scratch / prompt_id, ignore_errors=True)
        for kind in ENGINE_FOLDERS[1:]:
            shutil.rmtree(self.engine / kind / prompt_id, ignore_errors=True)

    # Results

    @in_thread
    def publish_result(self, prompt_id: str, filename: str) -> None:
        """Give a job's joined video its public name, for good.

        Only a file that the same job published before is replaced. Raises `FileExistsError` for any other.
        """
        result, claim = self.result(filename), self._scratch / prompt_id / "published"
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
        durable.rename(self.joined(prompt_id), result)

    @in_thread
    def delete_result(self, filename: str) -> None:
        """Delete a result, which may be gone."""
        self.result(filename).unlink(missing_ok=True)

    @in_thread
    def list_results(self) -> set[str]:
        """Return the names of all results, and of what was left of one."""
        return {file.name for file in self._results.iterdir()}

    # What a crash leaves

    @in_thread
    def mark_erasure(self, prompt_id: str) -> None:
        """Mark a job as being erased."""
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
    def list_jobs(self) -> set[str]:
        """Return the ids of all jobs that have a folder here, ended or never begun."""
        parents = (self._inputs, self._scratch, *(self.engine / kind for kind in ENGINE_FOLDERS))
        return {name for parent in parents for name in _folders_in(parent)}

    @in_thread
    def move_to_lost(self, prompt_ids: Iterable[str], filenames: Iterable[str], now: datetime) -> list[Path]:
        """Move the folders of jobs and results into a new folder in `lost+found`; return where they are then.

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
        """Delete what was moved there before a time, and nothing that a file system check may have put there."""
        try:
            found = list(self.lost.iterdir())
        except (FileNotFoundError, PermissionError):
            return  # the latter where the data folder is a disk of its own, and nothing was moved there
        for folder in found:
            with suppress(ValueError):
                if datetime.strptime(folder.name, LOST_STAMP).replace(tzinfo=UTC) <= before:
                    shutil.rmtree(folder)


def _folders_in(parent: Path) -> Iterator[str]:
    if parent.is_dir():
        yield from (folder.name for folder in parent.iterdir() if folder.is_dir())
