"""The engine's folders `input`, `output` and `temp` under one root. Nothing outside of them can be named.

The operator's networks are in a folder beside them, of which the engine reads only what it lists itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

KINDS = ("input", "output", "temp")
_ANNOTATION = re.compile(r"^(?P<name>.*?)(?: \[(?P<kind>input|output|temp)\])?$", re.DOTALL)

DISK_FULL_MESSAGE = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
"""Text of Python's error for a full disk, which the service knows."""


class OutsideError(ValueError):
    """A name that leads out of the engine's folders."""


class Folders:
    """The three folders, made when they are missing, and the one of the operator's networks, `models` in the root."""

    def __init__(self, root: Path, models: Path | None = None) -> None:
        self.root = root.resolve()
        self.models = models or self.root / "models"
        for kind in KINDS:
            (self.root / kind).mkdir(parents=True, exist_ok=True)

    def delete_partial(self) -> None:
        """Delete what a former process was still receiving or encoding: the files in `temp` itself."""
        for path in self.folder("temp").iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)

    def folder(self, kind: str) -> Path:
        """Return the folder of a `type` that the protocol names. Raises OutsideError for another word."""
        if kind not in KINDS:
            raise OutsideError(f"no such folder: {kind}")
        return self.root / kind

    def subfolder(self, kind: str, name: str) -> Path:
        """Return a folder within one of the three. Raises OutsideError for a name that leads out of it."""
        folder = self.folder(kind)
        path = (folder / name).resolve()
        if "\0" in name or not path.is_relative_to(folder):
            raise OutsideError(f"outside of {kind}: {name}")
        return path

    def file(self, kind: str, subfolder: str, name: str) -> Path:
        """Return a file, which may not exist yet. Raises OutsideError if `name` is no plain name in such a folder."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise OutsideError(f"not a file name: {name}")
        path = (self.subfolder(kind, subfolder) / name).resolve()
        if not path.is_relative_to(self.folder(kind)):
            raise OutsideError(f"outside of {kind}: {name}")
        return path

    def annotated(self, value: str) -> Path:
        """Return the file that a graph names: `job-1/clip.mp4`, or `clip.mp4 [output]` for one outside of `input`."""
        match = _ANNOTATION.match(value)
        assert match  # the pattern matches any text
        path = PurePosixPath(match["name"])
        return self.file(match["kind"] or "input", str(path.parent), path.name)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the folders against other engines, then erase what an earlier one left in `temp`, as ComfyUI does.

        Raises BlockingIOError while another engine has the folders.
        """
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(f"another engine uses {self.root}") from None
            self._clear_temp()
            yield

    def _clear_temp(self) -> None:
        for path in sorted(self.folder("temp").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def next_number(folder: Path, prefix: str) -> int:
    """Return the next free number for `prefix_00001…` names in `folder`, counted as VideoHelperSuite counts."""
    pattern = re.compile(rf"{re.escape(prefix)}_(\d+)\D*\..+")
    numbers = (int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))
    return max(numbers, default=0) + 1
