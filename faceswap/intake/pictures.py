"""The pictures of a request: their faces are counted, and what engines cannot read is converted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import aiofiles

from ..errors import Unprocessable
from ..files import PIECE_BYTES, Files
from ..jobs import ImageFile
from ..media import ENGINE_FORMATS, ImageFacts, MediaWorker
from ..options import Options
from ..workflow import face_numbers, swap_passes
from .form import Submission

MOST_SEEN = 1024
_SEEN: dict[tuple[str | None, str], ImageFacts] = {}
"""The facts of the last `MOST_SEEN` pictures, by owner and digest: who tries things sends the same ones again.

By owner, so that the time of an answer tells nobody which pictures others have sent.
"""

_FLAWS = {
    "small": "is small",
    "cut": "is cut off by its edge",
    "turned": "is turned away",
    "one_sided": "is lit from one side",
}
_BETTER = "one of 300 pixels that looks at the camera in even light serves better."


class Pictures:
    """Checks the pictures of requests, in the input folders of jobs that are not committed yet."""

    def __init__(self, files: Files, media: MediaWorker) -> None:
        self._files = files
        self._media = media

    async def check(
        self, submission: Submission, prompt_id: str, owner: str | None, *, takes_light: bool
    ) -> tuple[Submission, tuple[str, ...]]:
        """Return the submission with pictures that every engine reads, and what its user is to be warned of.

        `takes_light` is true where the light of a source may show in the result, as with the embedded engine.

        A mapping names pictures that are there. Raises Problem: 415 `not_an_image`, 422 `no_face_in_image`,
        `no_such_source_face`, `image_too_large` or `undecodable`.
        """
        images, options = list(submission.images), submission.options
        counts, flaws = [], []
        # One after the other: a refusal erases the folder, which no worker may be reading at that time.
        for number, image in enumerate(images):
            facts = await self._look_at(prompt_id, image, owner)
            name = _name(number, len(images))
            if facts.faces == 0:
                raise Unprocessable(
                    f"{name} shows no face that can be found; use one that shows it larger and from the front.",
                    code="no_face_in_image",
                )
            counts.append(facts.faces)
            flaws.append(facts.flaws)
            if facts.format not in ENGINE_FORMATS:
                images[number] = await self._convert(prompt_id, image)
        _check_faces(options, counts)
        warnings = (*_warnings(options, counts), *_flaw_warnings(options, flaws, takes_light=takes_light))
        return replace(submission, images=tuple(images)), warnings

    async def _look_at(self, prompt_id: str, image: ImageFile, owner: str | None) -> ImageFacts:
        facts = _SEEN.get((owner, image.sha256))
        if facts is None:
            facts = await self._media.probe_image(self._files.input(prompt_id, image.file))
            _SEEN[owner, image.sha256] = facts
            if len(_SEEN) > MOST_SEEN:
                del _SEEN[next(iter(_SEEN))]
        return facts

    async def _convert(self, prompt_id: str, image: ImageFile) -> ImageFile:
        """Put a PNG in the place of a picture of another format, under a name of its own."""
        stem = f"{PurePath(image.file).stem}-converted"
        original, made = (self._files.input(prompt_id, name) for name in (image.file, f"{stem}.made"))
        try:
            await self._media.convert_image(original, made)
            name, writer = f"{stem}.png", self._files.new_input(prompt_id, f"{stem}.part")
            try:
                async for piece in _pieces(made):
                    await writer.write(piece)
                await writer.finish(name)
            finally:
                await writer.close()
        finally:
            await self._files.delete(made)
        await self._files.delete(original)
        await self._files.sync_upload(prompt_id)
        return ImageFile(name, writer.sha256)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    async with aiofiles.open(path, "rb") as file:
        while piece := await file.read(PIECE_BYTES):
            yield piece


def _flaw_warnings(options: Options, flaws: Sequence[Sequence[Sequence[str]]], *, takes_light: bool) -> Iterator[str]:
    """Yield a sentence for each face that is put in and serves badly; `flaws` are those of each picture's faces."""
    chosen = dict.fromkeys(_chosen(options, len(flaws))) or {(image, 0): None for image in range(len(flaws))}
    for image, face in chosen:
        found = flaws[image][face] if face < len(flaws[image]) else ()
        told = [text for flaw, text in _FLAWS.items() if flaw in found and (takes_light or flaw != "one_sided")]
        if told:
            which = f"face {face} of " if len(flaws[image]) > 1 else "the face in "
            name = _name(image, len(flaws))
            text = f"{which}{name[0].lower()}{name[1:]} {' and '.join(told)}: {_BETTER}"
            yield text[0].upper() + text[1:]


def _name(number: int, count: int) -> str:
    """Return how a sentence about a picture begins."""
    return "The picture" if count == 1 else f"Picture {number}"


def target_warnings(options: Options, faces: int, images: int) -> tuple[str, ...]:
    """Return what the user of a still picture is to be warned of, which shows `faces` faces to change.

    No reason to refuse it: the engine has a detector of its own, which may find more.
    """
    if faces == 0:
        return ("No face was found in the picture that is to be changed.",)
    passes = swap_passes(options.to_dict(), images)
    named = [face for swap_pass in passes for face in swap_pass.faces] or face_numbers(options.face_index or "0")
    return tuple(
        f"The picture that is to be changed shows {_shown(faces)}; face {face} was not found in it."
        for face in sorted(set(named))
        if face >= faces
    )


def _shown(faces: int) -> str:
    return "one face, number 0" if faces == 1 else f"{faces} faces, counted from 0"


def _chosen(options: Options, count: int) -> Iterator[tuple[int, int]]:
    """Yield the picture and the number of each face that options name."""
    passes = swap_passes(options.to_dict(), count)
    for swap_pass in passes:
        yield from ((swap_pass.image, source) for source in swap_pass.sources)
    if not passes and options.source_face_index is not None:
        yield from ((0, source) for source in face_numbers(options.source_face_index))


def _check_faces(options: Options, counts: Sequence[int]) -> None:
    """Raise `Unprocessable` for a face that is chosen and not there; `counts` are the faces of each picture."""
    for image, source in _chosen(options, len(counts)):
        if source >= counts[image]:
            raise Unprocessable(
                f"{_name(image, len(counts))} shows {_shown(counts[image])}; there is no face {source} in it.",
                code="no_such_source_face",
            )


def _warnings(options: Options, counts: Sequence[int]) -> Iterator[str]:
    """Yield a sentence for each picture that shows several faces where none was chosen."""
    if options.mapping is not None and not options.one_person:
        return
    if options.source_face_index is not None:
        return
    for number, count in enumerate(counts):
        if count > 1:
            yield f"{_name(number, len(counts))} shows {count} faces: the largest is taken, which is number 0."
