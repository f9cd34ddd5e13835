"""A batch that is described by a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client import is_url
from ..options import Options
from .clips import Clip, with_format
from .common import MAX_JOBS

_CLIP_KEYS = frozenset({"video", "image", "output", "options", "label", "consent"})
_KEYS = (_CLIP_KEYS - {"video"}) | {"url", "jobs", "clip"}
_PATTERN_SIGNS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A batch: its clips, the folder for the results, and the service, if one is named."""

    clips: tuple[Clip, ...]
    output: Path
    url: str | None
    jobs: int | None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; its paths count from its own folder. Raises ValueError or `BadRequest` with a sentence."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    _check_keys(document, _KEYS, str(path))
    folder = path.absolute().parent
    clips = [
        clip
        for number, table in enumerate(_tables(document), 1)
        for clip in _clips({**_shared(document), **table}, document, folder, f"clip {number}")
    ]
    jobs = document.get("jobs")
    if jobs is not None and (not isinstance(jobs, int) or not 1 <= jobs <= MAX_JOBS):
        raise ValueError(f"'jobs' is {jobs!r}; allowed is a whole number from 1 to {MAX_JOBS}.")
    output = _text(document, "output", "the manifest") or "out"
    return Manifest(tuple(clips), folder / output, _text(document, "url", "the manifest"), jobs)


def _tables(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = document.get("clip")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError("The manifest names no clip; each is a table [[clip]] with a 'video'.")
    return tables


def _shared(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts for each clip that says nothing else."""
    return {name: document[name] for name in ("image", "label", "consent") if name in document}


def _clips(table: dict[str, Any], document: Mapping[str, Any], folder: Path, where: str) -> Iterator[Clip]:
    """Yield the clips of one table: one for each file that its pattern finds."""
    _check_keys(table, _CLIP_KEYS, where)
    output = _text(table, "output", where)
    options = {**_options(document, "the manifest"), **_options(table, where)}
    if output:
        if Path(output).is_absolute() or ".." in Path(output).parts:
            raise ValueError(f"The output of {where} is {output!r}; allowed is a name in the output folder.")
        options = with_format(options, output)
    chosen = Options.parse(options).to_dict()
    images = tuple(_place(image, folder) for image in _texts(table, "image", where))
    videos = list(_found(_texts(table, "video", where)[0], folder))
    if output and len(videos) > 1:
        raise ValueError(f"The video of {where} is several; they cannot have one output.")
    for video in videos:
        yield Clip(video, images, chosen, output, _text(table, "label", where), _text(table, "consent", where))


def _found(video: str, folder: Path) -> list[str]:
    if is_url(video) or not _PATTERN_SIGNS & set(video):
        return [_place(video, folder)]
    base = Path(video) if Path(video).is_absolute() else folder / video
    found = sorted(str(path) for path in Path(base.anchor).glob(str(base.relative_to(base.anchor))) if path.is_file())
    if not found:
        raise ValueError(f"No file is found for {video}.")
    return found


def _place(source: str, folder: Path) -> str:
    return source if is_url(source) else str(folder / source)


def _check_keys(table: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    for name in table:
        if name not in allowed:
            raise ValueError(f"{where} has an unknown {name!r}; allowed are {', '.join(sorted(allowed))}.")


def _options(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise ValueError(f"'options' of {where} must be a table.")
    return options


def _text(table: Mapping[str, Any], name: str, where: str) -> str | None:
    value = table.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name!r} of {where} must be a text.")
    return value


def _texts(table: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Return one text or several; there is at least one."""
    value = table.get(name)
    texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    if not texts or (isinstance(value, list) and len(texts) < len(value)):
        raise ValueError(f"{name!r} of {where} must be a text, or several.")
    return texts
