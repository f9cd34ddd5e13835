"""Files on their way to the service and back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .errors import FaceSwapError

OnUpload: TypeAlias = Callable[[int, int], object]
"""Is called with the bytes that were sent so far and all there are, at times from another thread."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that the service has already, to be used in many jobs until it expires."""

    id: str


Source: TypeAlias = str | os.PathLike[str] | Upload
"""A file, an http(s) address as text, which the service fetches, or an upload."""


def is_url(source: Source) -> bool:
    """Tell whether an input is an address rather than a file."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


@contextlib.contextmanager
def file_errors(doing: str) -> Iterator[None]:
    """Turn an error of a file into a `FaceSwapError`."""
    try:
        yield
    except OSError as error:
        raise FaceSwapError(0, "file", f"{doing}: {error.strerror or error}.") from error


class Tally:
    """The bytes of some files that were sent so far, of `total`; each change is told."""

    def __init__(self, total: int, on_upload: OnUpload | None = None) -> None:
        self.sent = 0
        self.total = total
        self._on_upload = on_upload

    def add(self, size: int) -> None:
        """Count bytes that are sent now."""
        self.sent += size
        if self._on_upload is not None:
            self._on_upload(self.sent, self.total)


class CountedFile(io.BufferedReader):
    """A file that counts what is read of it."""

    def __init__(self, path: Path, tally: Tally) -> None:
        super().__init__(io.FileIO(path))
        self._tally = tally

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as files do, and count."""
        chunk = super().read(size)
        self._tally.add(len(chunk))
        return chunk


class PartialFile:
    """A file that is written and hashed under a temporary name beside its destination."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination.resolve()
        if self._destination.exists() and not self._destination.is_file():
            raise FaceSwapError(0, "file", f"{destination} is not a file that could be replaced.")
        self._path = self._destination.with_name(f".{self._destination.name}.{secrets.token_hex(4)}.part")
        self._file = self._path.open("wb")
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written, in hex."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Drop what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Add to the end."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def keep(self) -> None:
        """Replace the destination by the file, on disk for good."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(self._destination)

    def discard(self) -> None:
        """Close the file, and remove it unless it was kept."""
        self._file.close()
        self._path.unlink(missing_ok=True)
