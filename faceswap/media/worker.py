"""Media decoded in child processes, so that a crash, a hang or a hunger for memory there is one error here."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from .. import errors
from ..marks import Marks, payload_of
from .facts import (
    CuttingFacts,
    FacesFacts,
    FrameRange,
    ImageFacts,
    JoinFacts,
    PieceFacts,
    Provenance,
    SigningFacts,
    Thumbnail,
    Verdict,
    VideoFacts,
)
from .paths import partial_path, unsigned_path
from .pool import Pool
from .process import ChildError

PROBES_AT_ONCE = 2
LOOKS_AT_ONCE = 2
MOST_LOOKS = 16
"""The most looks for faces, those that wait included."""
BUSY_S = 5
"""The pause that a client is asked for when there are as many."""
CHECKS_AT_ONCE = 2
PREPARATIONS_AT_ONCE = 2
THUMBNAILS_AT_ONCE = 1

PROBE_TIMEOUT_S = 20.0
PROBE_BYTES_A_SECOND = 20 << 20
JOIN_TIMEOUT_S = 60.0
JOIN_BYTES_A_SECOND = 1 << 20
VERIFY_TIMEOUT_S = 60.0
VERIFY_FRAMES_A_SECOND = 2.0
PREPARE_TIMEOUT_S = 60.0
PREPARE_FRAMES_A_SECOND = 5.0
MARK_FRAMES_A_SECOND = 1.0
CONVERT_FRAMES_A_SECOND = 1.0
PICTURE_TIMEOUT_S = 300.0
"""The largest picture takes 16 s of CPU as WebP, on a machine that may have more to do."""
EXAMINE_TIMEOUT_S = 600.0
SIGN_TIMEOUT_S = 60.0

WORK = {
    "check_cuttable": "Reading the video",
    "prepare": "Preparing the video",
    "cut": "Cutting the video",
    "join": "Joining the result",
    "convert": "Encoding the result",
    "make_still": "Preparing the picture",
    "verify_still": "Checking the result",
    "finish_picture": "Writing the result",
    "mark": "Marking the result",
    "check_signing": "Signing a sample",
    "verify": "Checking the result",
}
"""Names of the calls in messages for users."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Signing:
    """The files that results are signed with: a chain of certificates and its private key, both PEM."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Marking:
    """The way in which results are made known as such, beside their metadata.

    label     text in the picture, empty for none
    always    encode ComfyUI's pictures once more for the watermark, which the embedded engine draws itself
    signing   certificate and key of their content credentials
    pictures  draw a watermark into still pictures
    """

    label: str = ""
    always: bool = False
    signing: Signing | None = None
    pictures: bool = False


class MediaWorker:
    """The calls to the worker processes, which probe, join and verify media, a few at once.

    Use it as `async with MediaWorker() as media`. Results are marked and signed as `marking` says.
    """

    def __init__(self, marking: Marking | None = None) -> None:
        self._marking = marking or Marking()
        self._pool = Pool()
        # Apart, so that an upload is never kept waiting by the check of a long result, nor that by a long video.
        self._probes = asyncio.Semaphore(PROBES_AT_ONCE)
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._looking = 0
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._preparations = asyncio.Semaphore(PREPARATIONS_AT_ONCE)
        self._thumbnails = asyncio.Semaphore(THUMBNAILS_AT_ONCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all processes within a second; calls in progress fail."""
        await self._pool.close()

    async def probe_video(self, path: Path, max_frames: int) -> VideoFacts:
        """Return what the video at `path` holds. Raises Problem: 415 `not_a_video`, 422 `video_…` or `undecodable`."""
        answer = await self._probe("probe_video", path, max_frames=max_frames)
        return VideoFacts.from_json(answer)

    async def probe_target(self, path: Path, max_frames: int) -> VideoFacts | ImageFacts:
        """Return what a video or still picture holds. Raises Problem as `probe_video` and `probe_image` do."""
        answer = await self._probe("probe_target", path, max_frames=max_frames)
        return VideoFacts.from_json(answer) if "frames" in answer else ImageFacts.from_json(answer)

    async def probe_image(self, path: Path) -> ImageFacts:
        """Return size and format of the image at `path`, the number of its faces and their flaws.

        Raises Problem: 415 `not_an_image`, 422 `image_too_large` or `undecodable`.
        """
        return ImageFacts.from_json(await self._probe("probe_image", path))

    async def convert_image(self, path: Path, out: Path) -> None:
        """Write the image at `path` to `out` as PNG, upright. Raises Problem as `probe_image` does."""
        await self._probe("convert_image", path, out=out)

    def check_looks(self) -> None:
        """Raise 503 `too_busy` when no more looks for faces are taken, so that no file need be received for one."""
        if self._looking >= MOST_LOOKS:
            detail = "Faces are looked for in too many files at the moment; try again in a few seconds."
            raise errors.Unavailable(detail, code="too_busy", retry_after=BUSY_S)

    async def look_for_faces(
        self, path: Path, kind: str, at: float, max_frames: int, *, waits: bool = False
    ) -> FacesFacts:
        """Return the faces of an `image`, or of a `video`'s frame `at` so many seconds; see `faces.look_for_faces`.

        Raises Problem as `probe_image` and `probe_video` do, and 503 `too_busy` unless it `waits` for its turn.
        """
        if not waits:
            self.check_looks()
        self._looking += 1
        try:
            answer = await self._probe(
                "look_for_faces", path, slots=self._looks, kind=kind, at=at, max_frames=max_frames
            )
        finally:
            self._looking -= 1
        return FacesFacts.from_json(answer)

    async def thumbnail(self, path: Path, *, is_picture: bool) -> bytes:
        """Return a small JPEG of a picture or a video. Raises Problem."""
        answer = await self._probe("thumbnail", path, slots=self._thumbnails, is_picture=is_picture)
        return base64.b64decode(Thumbnail(**answer).jpeg)

    async def find_frames(
        self, path: Path, start: float | None, end: float | None, frame_rate: Fraction | None
    ) -> FrameRange:
        """Return the frames of a result that are shown from `start` to `end`; see `Timeline.span`. Raises Problem."""
        span: dict[str, Any] = {"start": start, "end": end, "frame_rate": frame_rate}
        return FrameRange(**await self._probe("find_frames", path, **span))

    async def cut_portrait(self, path: Path, out: Path, index: int) -> None:
        """Write the face `index` of the image at `path` to `out`, a PNG of one size for all; see `faces.cut_portrait`.

        Raises Problem as `probe_image` does, and 422 `no_face_in_image`.
        """
        await self._probe("cut_portrait", path, slots=self._looks, out=out, index=index)

    async def cuttable(self, source: Path) -> bool:
        """Return whether pieces can be cut out of `source` as it is; see `cut.check_cuttable`. Raises JobFailure."""
        timeout = VERIFY_TIMEOUT_S + await _size(source) / PROBE_BYTES_A_SECOND
        return CuttingFacts(**await self._check("check_cuttable", {"source": source}, timeout)).cuttable

    async def prepare(
        self,
        source: Path,
        out: Path,
        source_frames: int,
        frame_count: int,
        frame_rate: Fraction | None,
        first_frame: int = 0,
    ) -> None:
        """Make a copy of `source` to cut pieces from; see `cut.prepare`.

        Raises JobFailure; `out` is then as it was before.
        """
        arguments = {
            "source": source,
            "out": out,
            "first_frame": first_frame,
            "frame_count": frame_count,
            "frame_rate": frame_rate,
        }
        timeout = PREPARE_TIMEOUT_S + max(source_frames, frame_count) / PREPARE_FRAMES_A_SECOND
        timeout += await _size(source) / PROBE_BYTES_A_SECOND
        try:
            await self._check("prepare", arguments, timeout, self._preparations)
        finally:
            await asyncio.to_thread(partial_path(out).unlink, missing_ok=True)

    async def cut(
        self,
        source: Path,
        out: Path,
        first_frame: int,
        frame_count: int,
        frame_rate: Fraction | None,
        max_bytes: int | None,
    ) -> PieceFacts:
        """Cut a run of frames out of `source`; see `cut.cut`. Raises JobFailure."""
        arguments = {
            "source": source,
            "out": out,
            "first_frame": first_frame,
            "frame_count": frame_count,
            "frame_rate": frame_rate,
            "max_bytes": max_bytes,
        }
        timeout = VERIFY_TIMEOUT_S + frame_count / VERIFY_FRAMES_A_SECOND + await _size(source) / PROBE_BYTES_A_SECOND
        return PieceFacts(**await self._check("cut", arguments, timeout))

    async def join(
        self,
        segments: Sequence[Path],
        source: Path,
        out: Path,
        frame_rate: Fraction | None,
        prompt_id: str,
        first_frame: int = 0,
        start: float | None = None,
        end: float | None = None,
    ) -> JoinFacts:
        """Join segment results to `out` with the source's sound, tagged and signed; see `join.join`.

        Raises JobFailure; `out` is then as it was before.
        """
        size = await _size(*segments, source)
        timeout = JOIN_TIMEOUT_S + size / JOIN_BYTES_A_SECOND
        arguments = {
            "segments": list(segments),
            "source": source,
            "out": out,
            "frame_rate": frame_rate,
            "prompt_id": prompt_id,
            "first_frame": first_frame,
            "start": start,
            "end": end,
        }
        return await self._write_result("join", arguments, out, timeout)

    async def convert(
        self, path: Path, source: Path, *, kind: str, crf: int, prompt_id: str, frame_count: int
    ) -> JoinFacts:
        """Replace a joined result by one of another `kind`; see `convert.convert`. Raises JobFailure."""
        arguments = {"path": path, "source": source, "kind": kind, "crf": crf, "prompt_id": prompt_id}
        timeout = JOIN_TIMEOUT_S + frame_count / CONVERT_FRAMES_A_SECOND
        return await self._write_result("convert", arguments, path, timeout, self._preparations)

    async def make_still(self, source: Path, out: Path, at: float | None) -> None:
        """Make the picture that is to be changed, as a PNG; see `picture.make_still`. Raises JobFailure."""
        timeout = PICTURE_TIMEOUT_S + await _size(source) / PROBE_BYTES_A_SECOND
        try:
            await self._check("make_still", {"source": source, "out": out, "at": at}, timeout)
        finally:
            await asyncio.to_thread(partial_path(out).unlink, missing_ok=True)

    async def verify_still(self, result: Path, still: Path) -> Verdict:
        """Check an engine's picture against the one it was made of; see `picture.verify_still`. Raises JobFailure."""
        arguments = {"result": result, "still": still}
        return Verdict.from_json(await self._check("verify_still", arguments, PICTURE_TIMEOUT_S))

    async def finish_picture(
        self, result: Path, source: Path, out: Path, *, kind: str, crf: int, prompt_id: str
    ) -> JoinFacts:
        """Write an engine's picture as a result of a `kind`, labelled, tagged and signed; see `picture.finish_picture`.

        Raises JobFailure; `out` is then as it was before.
        """
        arguments = {
            "result": result,
            "source": source,
            "out": out,
            "kind": kind,
            "crf": crf,
            "prompt_id": prompt_id,
            "label": self._marking.label,
            "payload": payload_of(prompt_id).hex() if self._marking.pictures else None,
        }
        return await self._write_result("finish_picture", arguments, out, PICTURE_TIMEOUT_S)

    async def _write_result(
        self,
        call: str,
        arguments: dict[str, Any],
        out: Path,
        timeout: float,
        slots: asyncio.Semaphore | None = None,
    ) -> JoinFacts:
        """Have a result written to `out`, signed where that is wanted."""
        signing = asdict(self._marking.signing) if self._marking.signing else None
        try:
            return JoinFacts.from_json(await self._check(call, {**arguments, "signing": signing}, timeout, slots))
        except BaseException:
            for path in (partial_path(out), unsigned_path(out)):
                await asyncio.to_thread(path.unlink, missing_ok=True)
            raise

    def marks(self, prompt_id: str, first_frame: int) -> Marks:
        """Return the marks for the frames of a job's result from `first_frame` on."""
        return Marks(payload_of(prompt_id), first_frame, self._marking.label)

    async def mark(self, path: Path, marks: Marks, *, frame_count: int, crf: int) -> None:
        """Draw marks into a segment that ComfyUI made, where that is wanted; see `mark.mark`.

        Raises JobFailure; the segment is then as it was before.
        """
        if not self._marking.always and not self._marking.label:
            return
        arguments = {"path": path, "marks": marks.to_json(), "crf": crf}
        timeout = VERIFY_TIMEOUT_S + frame_count / MARK_FRAMES_A_SECOND
        try:
            await self._check("mark", arguments, timeout)
        finally:
            await asyncio.to_thread(partial_path(path).unlink, missing_ok=True)

    async def examine(self, path: Path) -> Provenance:
        """Return what a video says of its making. Raises Problem."""
        return Provenance.from_json(await self._probe("examine", path, EXAMINE_TIMEOUT_S))

    async def signing_problem(self) -> str | None:
        """Return why results cannot be signed as they are to be; None if nothing is wrong. Raises JobFailure."""
        signing = self._marking.signing
        if signing is None:
            return None
        return SigningFacts(**await self._check("check_signing", asdict(signing), SIGN_TIMEOUT_S)).problem

    async def verify(
        self,
        result: Path,
        source: Path,
        *,
        first_frame: int,
        frame_count: int,
        frame_rate: Fraction | None,
        crf: int | None,
    ) -> Verdict:
        """Check a result against its part of the source; see `verify.verify`.

        Raises JobFailure.
        """
        arguments = {
            "result": result,
            "source": source,
            "first_frame": first_frame,
            "frame_count": frame_count,
            "frame_rate": frame_rate,
            "crf": crf,
        }
        size = await _size(source)
        timeout = VERIFY_TIMEOUT_S + frame_count / VERIFY_FRAMES_A_SECOND + size / PROBE_BYTES_A_SECOND
        return Verdict.from_json(await self._check("verify", arguments, timeout))

    async def _probe(
        self,
        call: str,
        path: Path,
        least_s: float | None = None,
        slots: asyncio.Semaphore | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        timeout = (least_s or PROBE_TIMEOUT_S) + await _size(path) / PROBE_BYTES_A_SECOND
        async with slots or self._probes:
            try:
                return await self._pool.ask(call, {"path": path, **arguments}, timeout)
            except ChildError as error:
                log.warning("a worker failed: %s", error)
                detail = "The file cannot be decoded within the limits of time and memory."
                raise errors.Unprocessable(detail, code="undecodable") from error

    async def _check(
        self, call: str, arguments: dict[str, Any], timeout: float, slots: asyncio.Semaphore | None = None
    ) -> dict[str, Any]:
        async with slots or self._checks:
            try:
                return await self._pool.ask(call, arguments, timeout)
            except ChildError as error:
                log.warning("a worker failed: %s", error)
                message = f"{WORK[call]} failed or took too much time or memory; the service's log says which."
                raise errors.JobFailure("check_failed", message, transient=True) from error


async def _size(*paths: Path) -> int:
    """Return bytes in all, which the time allowed is in proportion to."""
    return await asyncio.to_thread(lambda: sum(path.stat().st_size for path in paths))
