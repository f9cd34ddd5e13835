"""The client of a service: a method for each thing that people do with jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mimetypes
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast
from urllib.parse import quote

import aiohttp
from yarl import URL

from .documents import Faces, JobStatus, Result
from .errors import FaceSwapError, JobFailed
from .event_stream import EventStreamParser, JobEvent
from .transfer import CountedFile, OnUpload, PartialFile, Source, Tally, Upload, file_errors, is_url

DEFAULT_URL = "http://127.0.0.1:8000"

RESUMES = 10
"""The number of tries that takes about a minute, which is enough for a restart of the service."""

RESUMABLE_BYTES = 64 * 1024 * 1024
"""The size from which a video is sent as an upload, which goes on after a cut, and not within the request."""
MAX_PAUSE_S = 8.0
MAX_RETRY_AFTER_S = 90.0
"""The longest pause that a service may ask for before the same call is made again."""
CANCEL_TIMEOUT_S = 10
PAGE_JOBS = 100
_TUS = {"Tus-Resumable": "1.0.0"}
_NO_FIELDS = frozenset({"idempotency_key", "on_upload"})
_CHUNK_BYTES = 1 << 18
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
"""Bounds on silence, not on the whole: an upload may take hours, and an event stream sends something every 15 s."""


class Request(TypedDict, total=False):
    """The parts of a swap beside its inputs.

    output_name       name of the result at the service
    options           the workflow's options, by name
    label             a text of one's own to find the job by
    consent           a text or reference that says that the person shown has agreed
    webhook_url       is called when the job has ended
    result_put_url    is sent the result
    from_job          the job that has the inputs that are not given
    idempotency_key   the same key means the same job, however often it is submitted
    on_upload         is called with the bytes that were sent and all there are
    """

    output_name: str | None
    options: Mapping[str, Any] | None
    label: str | None
    consent: str | None
    webhook_url: str | None
    result_put_url: str | None
    from_job: str | None
    idempotency_key: str | None
    on_upload: OnUpload | None


class FaceSwap:
    """A client of one service, used as `async with FaceSwap(url, key) as fs`.

    `url` may have a path prefix. The caller closes a `session` that it passes. `resumes` is the number of times in
    a row that a cut upload, stream or download is resumed. Every method raises `FaceSwapError`.
    """

    def __init__(
        self,
        url: str | URL = DEFAULT_URL,
        key: str | None = None,
        *,
        session: aiohttp.ClientSession | None = None,
        resumes: int = RESUMES,
    ) -> None:
        self.url = str(url).rstrip("/")
        self._session = session
        self._owned = session is None
        self._resumes = resumes
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless the session was the caller's."""
        if self._owned and self._session is not None:
            await self._session.close()

    async def swap(
        self,
        video: Source | None = None,
        image: Source | Sequence[Source] = (),
        output: str | PathLike[str] | None = None,
        *,
        on_event: Callable[[JobEvent], object] | None = None,
        **request: Unpack[Request],
    ) -> Result:
        """Submit a swap as `submit` does, wait for its end and save the result to `output`, if that is given.

        Raises `JobFailed` when there is no result. Who cancels this call cancels the job.
        """
        prompt_id = await self.submit(video, image, **request)
        try:
            result = await self.wait(prompt_id, on_event=on_event)
            return result if output is None else replace(result, path=await self.download(result, output))
        except asyncio.CancelledError:
            with contextlib.suppress(FaceSwapError, TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await self.cancel(prompt_id)
            raise

    async def submit(
        self, video: Source | None = None, image: Source | Sequence[Source] = (), **request: Unpack[Request]
    ) -> str:
        """Submit a swap of the face in `image` into `video`; returns the job's `prompt_id` once the job is on disk.

        Each input is a file, streamed from disk, an http(s) address as text, which the service fetches, or an upload.
        A large video is sent resumably, and that upload erased when the job has it.
        `video` may be a picture. `image` may be up to eight. A submission that was cut off, or that the service had no
        room for, is repeated under the same idempotency key, so that it makes one job. Who cancels this call when all
        is sent cancels the job, once the service has answered.
        """
        inputs: list[tuple[str, Source]] = [("image", source) for source in _several(image)]
        if video is not None:
            inputs.append(("video", video))
        tally = Tally(sum(_size(source) for _, source in inputs), request.get("on_upload"))
        upload = None
        if video is not None and _size(video) > RESUMABLE_BYTES:
            upload = await self._send(video, tally)
            inputs[-1] = ("video", upload)
        submitting = asyncio.create_task(self._submit(inputs, request, tally))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            if tally.sent < tally.total:
                submitting.cancel()
            await self._take_back(submitting)
            raise
        finally:
            if upload is not None:
                await self._give_up(upload)

    async def _take_back(self, submitting: asyncio.Task[str]) -> None:
        """Cancel the job that comes of a submission, unless that ends without one."""
        with contextlib.suppress(FaceSwapError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await self.cancel(await submitting)

    async def _submit(self, inputs: Sequence[tuple[str, Source]], request: Request, tally: Tally) -> str:
        headers = {"Prefer": "respond-async", "Idempotency-Key": request.get("idempotency_key") or str(uuid.uuid4())}
        fields = {name: value for name, value in request.items() if value and name not in _NO_FIELDS}
        failures, sent_before = 0, tally.sent
        while True:
            tally.sent = sent_before
            try:
                with _form(inputs, fields, tally) as form:
                    async with self._request("POST", "face-swap", headers=headers, data=form) as response:
                        return str((await _json(response))["prompt_id"])
            except FaceSwapError as error:
                if not error.transient or error.code == "unreachable":
                    raise
                failures += 1
                await self._pause(failures, 0.5, error)

    async def upload(self, path: str | PathLike[str], *, on_upload: OnUpload | None = None) -> Upload:
        """Send a file (tus 1.0), going on after each cut; returns the upload, which many jobs may use."""
        return await self._send(path, Tally(_size(path), on_upload))

    async def _send(self, source: Source, tally: Tally) -> Upload:
        path, size = Path(str(source)), _size(source)
        async with self._request("POST", "uploads", headers={**_TUS, "Upload-Length": str(size)}) as response:
            upload = Upload(response.headers.get("Location", "").rpartition("/")[2])
        try:
            await self._fill(upload, path, size, tally)
        except BaseException:  # what has arrived would stay until it expires
            await self._give_up(upload)
            raise
        return upload

    async def _give_up(self, upload: Upload) -> None:
        """Have an upload erased, if the service can be reached."""
        with contextlib.suppress(FaceSwapError, TimeoutError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await self.delete_upload(upload)

    async def _fill(self, upload: Upload, path: Path, size: int, tally: Tally) -> None:
        """Send the bytes of a file."""
        offset, failures = 0, 0
        while offset < size:
            before = offset
            try:
                if failures:
                    offset = await self._upload_offset(upload)
                with file_errors(f"{path} cannot be read"), CountedFile(path, tally) as file:
                    tally.sent = file.seek(offset)
                    headers = {**_TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
                    async with self._request("PATCH", "uploads", upload.id, headers=headers, data=file) as response:
                        arrived = int(response.headers["Upload-Offset"])
                if arrived <= offset:
                    raise FaceSwapError(0, "file", f"{path} has become shorter while it was sent.")
                offset = arrived
            except FaceSwapError as error:
                # 409, 423: the service has not noticed the cut yet.
                if not error.transient and error.status not in (409, 423):
                    raise
                failures = 1 if offset > before else failures + 1
                await self._pause(failures, 0.5, error)

    async def _upload_offset(self, upload: Upload) -> int:
        async with self._request("HEAD", "uploads", upload.id, headers=_TUS) as response:
            return int(response.headers["Upload-Offset"])

    async def delete_upload(self, upload: Upload) -> None:
        """Erase an upload; jobs that were made of it keep what they have."""
        async with self._request("DELETE", "uploads", upload.id, headers=_TUS):
            pass

    async def faces(self, source: Source, *, at: float | None = None) -> Faces:
        """Find the faces in a picture, or in the frame of a video at `at` seconds, numbered as `face_index` counts.

        A file is a video when its name says so, or when `at` is given.
        """
        is_video = at is not None or _is_video(source)
        fields = {} if at is None else {"at": at}
        with _form([("video" if is_video else "image", source)], fields, Tally(_size(source))) as form:
            async with self._request("POST", "faces", data=form) as response:
                return cast(Faces, await _json(response))

    async def events(self, prompt_id: str, last_event_id: str | None = None) -> AsyncIterator[JobEvent]:
        """Yield the job's events, from its first or from the one after `last_event_id`, up to the one that ends it.

        The last event is the job's end; a job that was retried has earlier ends in between. After a cut connection or
        a restart of the service the stream is resumed where it was cut.
        """
        failures, pause_s, ended = 0, 0.5, False
        while True:
            cause = FaceSwapError(0, "connection_lost", "The event stream ended before the job did.")
            parser = EventStreamParser()
            headers = {"Accept": "text/event-stream"}
            if last_event_id:
                headers["Last-Event-ID"] = last_event_id
            try:
                async with self._request("GET", "events", prompt_id, headers=headers) as response:
                    async for chunk in response.content.iter_any():
                        for sent in parser.feed(chunk):
                            failures, last_event_id = 0, sent.id
                            event = JobEvent(sent.id, sent.type, json.loads(sent.data))
                            ended = event.terminal
                            yield event
            except FaceSwapError as error:
                if not error.transient:
                    raise
                cause = error
            if ended:
                return
            if parser.retry_ms is not None:
                pause_s = parser.retry_ms / 1000
            failures += 1
            await self._pause(failures, pause_s, cause)

    async def wait(self, prompt_id: str, *, on_event: Callable[[JobEvent], object] | None = None) -> Result:
        """Wait until the job has ended; raises `JobFailed` when it has no result.

        `on_event` is called with each event.
        """
        async for event in self.events(prompt_id):
            if on_event is not None:
                on_event(event)
        if event.type == "completed":
            return Result.of_event(event.data)
        detail = event.data.get("detail") or event.data.get("message") or "The job was cancelled."
        raise JobFailed(prompt_id, str(event.data.get("code", event.type)), str(detail))

    async def status(self, prompt_id: str) -> JobStatus:
        """Return the status of a job."""
        async with self._request("GET", "status", prompt_id) as response:
            return cast(JobStatus, await _json(response))

    async def jobs(
        self, *, status: str | None = None, label: str | None = None, limit: int | None = None
    ) -> AsyncIterator[JobStatus]:
        """Yield jobs, the newest first: all, or those of a status (`FAILED`, …) or with a label, at most `limit`."""
        left = sys.maxsize if limit is None else limit
        wanted = {"status": status, "label": label, "limit": str(min(left, PAGE_JOBS)), "cursor": None}
        while True:
            query = {name: value for name, value in wanted.items() if value}
            async with self._request("GET", "jobs", params=query) as response:
                page = await _json(response)
            for job in page["jobs"][:left]:
                yield job
            left -= len(page["jobs"])
            wanted["cursor"] = page["next_cursor"]
            if left <= 0 or not wanted["cursor"]:
                return

    async def health(self) -> dict[str, Any]:
        """Return the state of the service: its engines, queue and disk."""
        async with self._request("GET", "health") as response:
            return await _json(response)

    async def cancel(self, prompt_id: str) -> JobStatus:
        """Cancel the job, which ends a little later; `FaceSwapError` 409 when it has ended."""
        async with self._request("POST", "jobs", prompt_id, "cancel") as response:
            return cast(JobStatus, await _json(response))

    async def retry(self, prompt_id: str) -> JobStatus:
        """Queue a failed or cancelled job again, from its last finished segment on."""
        async with self._request("POST", "jobs", prompt_id, "retry") as response:
            return cast(JobStatus, await _json(response))

    async def update(self, prompt_id: str, *, priority: int | None = None, label: str | None = None) -> JobStatus:
        """Change the priority of a job that has not ended, or its label."""
        changes = {name: value for name, value in (("priority", priority), ("label", label)) if value is not None}
        async with self._request("PATCH", "jobs", prompt_id, json=changes) as response:
            return cast(JobStatus, await _json(response))

    async def delete(self, prompt_id: str) -> None:
        """Erase the job with its inputs and its result, for good; one that runs is cancelled first."""
        async with self._request("DELETE", "jobs", prompt_id):
            pass

    async def download(
        self, result: Result | str, destination: str | PathLike[str], *, sha256: str | None = None
    ) -> Path:
        """Download a result to `destination`, which is replaced in one step once all bytes are there, or not at all.

        A download that was cut is resumed where it stopped. With `sha256` (hex), which a `Result` brings along, a file
        that differs is refused. Returns the destination.
        """
        filename, sha256 = (result, sha256) if isinstance(result, str) else (result.filename, result.sha256)
        path = Path(destination)
        with file_errors(f"{path} cannot be written"):
            partial = PartialFile(path)
            try:
                await self._receive(filename, partial)
                if sha256 is not None and partial.sha256 != sha256:
                    message = "The result arrived damaged: its SHA-256 is not the one announced."
                    raise FaceSwapError(0, "damaged", message)
                partial.keep()
            finally:
                partial.discard()
        return path

    async def _receive(self, filename: str, partial: PartialFile) -> None:
        etag, failures = "", 0
        while True:
            headers = {"Range": f"bytes={partial.size}-", "If-Range": etag} if partial.size and etag else {}
            before = partial.size
            try:
                async with self._request("GET", "download", filename, headers=headers) as response:
                    if response.status != 206:
                        partial.restart()
                    etag = response.headers.get("ETag", "")
                    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                        partial.write(chunk)
                return
            except FaceSwapError as error:
                if not error.transient:
                    raise
                failures = 1 if partial.size > before else failures + 1
                await self._pause(failures, 0.5, error)

    async def _pause(self, failures: int, first_s: float, cause: FaceSwapError) -> None:
        """Wait before the next try, twice as long each time, or as long as the service asks for.

        Raises `cause` after the last try.
        """
        if failures > self._resumes:
            raise cause
        asked_s = min(cause.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        await asyncio.sleep(max(asked_s, min(first_s * 2 ** (failures - 1), MAX_PAUSE_S)))

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, *path: str, headers: Mapping[str, str] | None = None, **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        url = URL("/".join([self.url, *(quote(part, safe="") for part in path)]), encoded=True)
        headers = {**self._headers, **(headers or {})}
        try:
            async with self._session.request(method, url, headers=headers, timeout=_TIMEOUT, **arguments) as response:
                if response.status >= 400:
                    raise await _problem(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            raise _no_answer(self.url, error) from error


def _several(sources: Source | Sequence[Source]) -> Sequence[Source]:
    return [sources] if isinstance(sources, str | PathLike | Upload) else list(sources)


def _size(source: Source) -> int:
    """Return the bytes of a file; 0 of what is not sent from here."""
    if isinstance(source, Upload) or is_url(source):
        return 0
    with file_errors(f"{source} cannot be read"):
        return Path(source).stat().st_size


def _is_video(source: Source) -> bool:
    name = "" if isinstance(source, Upload) else str(source).partition("?")[0]
    return (mimetypes.guess_type(name)[0] or "").startswith("video/")


@contextlib.contextmanager
def _form(inputs: Sequence[tuple[str, Source]], fields: Mapping[str, Any], tally: Tally) -> Iterator[aiohttp.FormData]:
    """Build a request as multipart, its inputs last and in order; the files are open until the block ends."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value if isinstance(value, str) else json.dumps(value))
    with contextlib.ExitStack() as stack:
        for name, source in inputs:
            if isinstance(source, Upload):
                form.add_field(f"{name}_upload", source.id)
            elif is_url(source):
                form.add_field(f"{name}_url", str(source))
            else:
                with file_errors(f"{source} cannot be read"):
                    file = stack.enter_context(CountedFile(Path(source), tally))
                form.add_field(name, file, filename=name, content_type="application/octet-stream")
        yield form


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the object that is an answer; raises ValueError where it is none."""
    document = json.loads(await response.read())
    if not isinstance(document, dict):
        raise ValueError("the answer is no JSON object")
    return document


def _no_answer(url: str, error: Exception) -> FaceSwapError:
    """Say that there was no answer, or none of this API."""
    reason = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        return FaceSwapError(0, "unreachable", f"No answer from {url}: {reason}.")
    if isinstance(error, aiohttp.ClientError | TimeoutError):
        return FaceSwapError(0, "connection_lost", f"No answer from {url}: {reason}.")
    return FaceSwapError(0, "bad_answer", f"The answer from {url} is not one of this API: {reason}.")


async def _problem(response: aiohttp.ClientResponse) -> FaceSwapError:
    """Parse the error of a problem+json answer (RFC 9457), or of an answer of a proxy in between."""
    try:
        document = json.loads(await response.content.read(_CHUNK_BYTES))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    detail = document.get("detail") or document.get("title") or f"The server answered {response.status}."
    pause = response.headers.get("Retry-After", "")
    retry_after_s = float(pause) if pause.isascii() and pause.isdecimal() else None
    return FaceSwapError(response.status, str(document.get("code", "http_error")), str(detail), retry_after_s)
