"""The record of a batch: a small file beside the results, from which a batch goes on where it stopped."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .clips import Clip

RECORD_NAME = ".faceswap-batch.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip in the record.

    fingerprint    of what was submitted
    submission     the idempotency key: a submission that was cut off is repeated with it, and makes one job
    service        the address of the service that has the job
    prompt_id      the job, once the service has answered
    output         the name of the result, once it is there
    bytes          its size
    """

    fingerprint: str = ""
    submission: str = ""
    service: str = ""
    prompt_id: str | None = None
    output: str | None = None
    bytes: int | None = None


class RecordError(Exception):
    """A record that cannot be used now; the message is a sentence."""


class Record:
    """The record of the batch in a folder, held by one process at a time. Raises `RecordError`.

    Each change is a line at the end, on disk before the next step; a line that a crash cut short does not count.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / RECORD_NAME).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._entries = self._read()
        except BlockingIOError as error:
            self._file.close()
            raise RecordError(f"A batch into {folder} is running already.") from error
        except (ValueError, KeyError, TypeError) as error:
            self._file.close()
            raise RecordError(f"{folder / RECORD_NAME} cannot be read; remove it to begin anew.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> dict[str, Entry]:
        self._file.seek(0)
        *lines, cut = self._file.read().split(b"\n")
        self._file.truncate(self._file.tell() - len(cut))
        entries = {}
        for line in lines:
            document = json.loads(line)
            key = document.pop("clip")
            entries[key] = Entry(**document)
        return entries

    def entry(self, clip: Clip) -> Entry:
        """Return what is known of a clip."""
        return self._entries.get(clip.key, Entry())

    def change(self, clip: Clip, **changes: Any) -> Entry:
        """Write down what is new of a clip."""
        entry = replace(self.entry(clip), **changes)
        self._entries[clip.key] = entry
        self._file.write(json.dumps({"clip": clip.key, **asdict(entry)}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return entry

    def is_done(self, clip: Clip) -> bool:
        """Tell whether the clip's result lies in the folder, made of what the clip is now."""
        entry = self.entry(clip)
        if entry.output is None or entry.fingerprint != clip.fingerprint():
            return False
        return self.result(clip).is_file() and self.result(clip).stat().st_size == entry.bytes

    def result(self, clip: Clip) -> Path:
        """Return the file of a clip that is done."""
        return self.folder / str(self.entry(clip).output)

    def free_name(self, clip: Clip, stem: str, suffix: str) -> str:
        """Return a name for the clip's result that replaces no file but its own former result."""
        taken = {entry.output for key, entry in self._entries.items() if key != clip.key}
        own = self.entry(clip).output
        names = (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}" for number in itertools.count(1))
        return next(name for name in names if name == own or not (name in taken or (self.folder / name).exists()))
