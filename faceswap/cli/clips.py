"""Clips that are to be swapped, as a command or a manifest names them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..client import is_url
from ..client.transfer import file_errors

FORMATS = {".mp4": "mp4", ".webm": "webm", ".gif": "gif", ".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
"""The format that a result's name asks for."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One swap of a batch. `output` is the name of the result in the folder, None to name it after the clip."""

    video: str
    images: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    label: str | None = None
    consent: str | None = None

    @property
    def key(self) -> str:
        """The clip's name in the record: the same each time the batch is called."""
        return f"{_whole(self.video)} > {self.output or ''}"

    @property
    def name(self) -> str:
        """The name of the clip's file."""
        path = unquote(urlsplit(self.video).path) if is_url(self.video) else self.video
        return path.rpartition("/")[2] or "clip"

    def fingerprint(self) -> str:
        """Return a digest of all that the result depends on; of a file its size and time count."""
        inputs = [_state(source) for source in (self.video, *self.images)]
        text = json.dumps([inputs, self.options, self.label, self.consent], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def stems(clips: Sequence[Clip]) -> dict[str, str]:
    """Return a name without extension for each clip's result, by the clip's key; no two are the same."""
    found: dict[str, str] = {}
    for clip in clips:
        stem = Path(clip.name).stem
        names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        found[clip.key] = next(name for name in names if name not in found.values())
    return found


def _whole(source: str) -> str:
    return source if is_url(source) else str(Path(source).absolute())


def _state(source: str) -> list[Any]:
    if is_url(source):
        return [source]
    with file_errors(f"{source} cannot be read"):
        status = Path(source).stat()
    return [_whole(source), status.st_size, status.st_mtime_ns]


def with_format(options: dict[str, Any], output: str) -> dict[str, Any]:
    """Return the options with the format that a result's name asks for. Raises ValueError where they differ."""
    wanted = FORMATS.get(Path(output).suffix.lower())
    if wanted is None:
        return options
    if options.get("format", wanted) != wanted:
        raise ValueError(f"The output {output} asks for the format {wanted}, the option for {options['format']}.")
    return {**options, "format": wanted}


def check_inputs(clips: Sequence[Clip]) -> None:
    """Raise ValueError, with a sentence, for an input that is not there, or a clip that is named twice."""
    for clip in clips:
        for name, sources in (("image", clip.images), ("video", (clip.video,))):
            for source in sources:
                if not is_url(source) and not Path(source).is_file():
                    raise ValueError(f"The {name} {source} is not there, or is not a file.")
    keys = [clip.key for clip in clips]
    for clip in clips:
        if keys.count(clip.key) > 1:
            raise ValueError(f"The video {clip.video} is named twice; give each an output of its own.")
