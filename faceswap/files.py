"""Where a job's files lie. Names come from ids and checked output names only, never from a client's path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from .jobs import Inputs, Segment

ENGINE_FOLDERS = ("input", "temp", "output")
"""Folders of the embedded engine where a job has one of its own: results lie in `temp`, older jobs' in `output`."""
LOST_STAMP = "%Y%m%dT%H%M%S.%fZ"
"""What the folders in `lost+found` are called: when, in UTC, their content was put there."""
UPLOAD, ERASURE = ".upload", ".erasure"


def upload_mark(inputs: Path) -> Path:
    """The file that lies beside an input folder until its job is committed."""
    return inputs.with_name(inputs.name + UPLOAD)


class Files:
    """The folders of one data directory, all readable by their owner only."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir
        self.database = data_dir / "faceswap.db"
        self.lock = data_dir / "lock"
        self.engine = data_dir / "engine"
        self._inputs = data_dir / "inputs"
        self._work = data_dir / "work"
        self._outputs = data_dir / "outputs"
        self.lost = data_dir / "lost+found"

    def create(self) -> None:
        """Make what is missing."""
        for folder in (self.root, self._inputs, self._work, self._outputs, self.engine):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self.root.glob(f"{self.database.name}*"):  # what a copy or a restored backup may have opened
            file.chmod(0o600)

    def inputs(self, prompt_id: str) -> Path:
        """The folder of a job's video and face."""
        return self._inputs / prompt_id

    def video(self, prompt_id: str, inputs: Inputs) -> Path:
        """A job's video."""
        return self.inputs(prompt_id) / inputs.video_file

    def image(self, prompt_id: str, inputs: Inputs) -> Path:
        """A job's face."""
        return self.inputs(prompt_id) / inputs.image_file

    def segment(self, segment: Segment) -> Path:
        """Where the output of an attempt at a segment goes."""
        folder = self._work / segment.prompt_id
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{segment.number:05d}-{segment.attempt}.mp4"

    def piece(self, segment: Segment) -> Path:
        """Where the part of the video that an attempt at a segment needs is cut to, for as long as it is uploaded."""
        path = self.segment(segment)
        return path.with_name(f"{path.stem}-source")

    def prepared(self, prompt_id: str) -> Path:
        """A job's video made anew so that pieces can be cut from it."""
        return self._work / prompt_id / "prepared.mp4"

    def finished_segment(self, segment: Segment) -> Path:
        """A finished segment's output."""
        return self._work / segment.prompt_id / (segment.output_file or "")

    def joined(self, prompt_id: str) -> Path:
        """Where the segments are joined."""
        return self._work / prompt_id / "joined.mp4"

    def result(self, filename: str) -> Path:
        """A finished result."""
        return self._outputs / filename

    def publish(self, joined: Path, filename: str) -> None:
        """Give a joined video its public name, for good."""
        joined.replace(self.result(filename))
        folder = os.open(self._outputs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def erase_inputs(self, prompt_id: str) -> None:
        """Erase a job's video and face, here and in the embedded engine, and its finished segments."""
        for folder in self._folders_of(prompt_id):
            shutil.rmtree(folder, ignore_errors=True)

    def _folders_of(self, prompt_id: str) -> tuple[Path, ...]:
        # The engine's folders are its own; what we uploaded lies under the job's id there.
        return (
            self.inputs(prompt_id),
            self._work / prompt_id,
            *(self.engine / kind / prompt_id for kind in ENGINE_FOLDERS),
        )

    def erase_work(self, prompt_id: str) -> None:
        """Erase what only a running job needs."""
        shutil.rmtree(self._work / prompt_id, ignore_errors=True)
        for kind in ENGINE_FOLDERS[1:]:
            shutil.rmtree(self.engine / kind / prompt_id, ignore_errors=True)

    def erase_result(self, filename: str) -> None:
        """Erase a result."""
        self.result(filename).unlink(missing_ok=True)

    def job_folders(self) -> Iterator[str]:
        """The ids of all jobs that have a folder here, ended or never begun."""
        for parent in (self._inputs, self._work, *(self.engine / kind for kind in ENGINE_FOLDERS)):
            if parent.is_dir():
                yield from (folder.name for folder in parent.iterdir() if folder.is_dir())

    def erasure_mark(self, prompt_id: str) -> Path:
        """The file that lies beside a job's input folder while everything of the job is erased."""
        inputs = self.inputs(prompt_id)
        return inputs.with_name(inputs.name + ERASURE)

    def marked(self, suffix: str) -> set[str]:
        """The ids of the jobs that have this mark."""
        return {mark.name.removesuffix(suffix) for mark in self._inputs.glob(f"*{suffix}")}

    def set_aside(self, prompt_ids: Iterable[str], filenames: Iterable[str], now: datetime) -> list[Path]:
        """Move the folders of jobs and results into a new folder in `lost+found`; returns where they are then.

        What is empty goes. Raises `OSError`.
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

    def erase_lost(self, before: datetime) -> None:
        """Erase what was set aside before a time, and nothing that a file system check may have put there."""
        try:
            found = list(self.lost.iterdir())
        except (FileNotFoundError, PermissionError):
            return  # the latter where the data folder is a disk of its own, and nothing was set aside
        for folder in found:
            with suppress(ValueError):
                if datetime.strptime(folder.name, LOST_STAMP).replace(tzinfo=UTC) <= before:
                    shutil.rmtree(folder)

    def results(self) -> Iterator[str]:
        """The names of all results, and of what was left of one."""
        yield from (file.name for file in self._outputs.iterdir())

    def free_bytes(self) -> int:
        """What is left on the disk."""
        return shutil.disk_usage(self.root).free
