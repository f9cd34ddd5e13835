"""A client of the HTTP API: for `faceswap swap`, the tests and users' own programs."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from .jobs import TERMINAL_EVENTS

MAX_EVENT_CHARS = 1 << 20
"""The longest event; this service sends none that is longer."""

RESUMES = 10
"""The number of tries that takes about a minute, which is enough for a restart of the service."""

MAX_PAUSE_S = 8.0
_CHUNK_BYTES = 1 << 18
_TRANSIENT = frozenset({0, 429, 502, 503, 504})
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
"""Bounds on silence, not on the whole: an upload may take hours, and an event stream sends something every 15 s."""

_LINE_END = re.compile(r"\r\n|\n|\r")


class ClientError(Exception):
    """An unsuccessful call.

    `status` is the HTTP status, 0 when there was no answer; `code` a stable word; `detail` a sentence for a person.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of a job. `id` is the value for `last_event_id` after it."""

    id: str
    type: str
    data: Mapping[str, Any]

    @property
    def terminal(self) -> bool:
        """True of an event that ended the job."""
        return self.type in TERMINAL_EVENTS


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a `text/event-stream`, its data not yet parsed."""

    id: str
    type: str
    data: str


class EventStreamParser:
    """A parser of `text/event-stream` (WHATWG HTML, 9.2.6 "Interpreting an event stream").

    Chunks may end anywhere, in the middle of a line end or of a character too. An event that the end of the stream
    cuts short is never dispatched. Raises `ClientError` for an event longer than `MAX_EVENT_CHARS`.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._after_cr = False
        self._type = ""
        self._data: list[str] = []
        self._chars = 0

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that this chunk completes."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        *lines, self._rest = _LINE_END.split(self._rest + text)
        for line in lines:
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                yield event
        if self._chars + len(self._rest) > MAX_EVENT_CHARS:
            raise ClientError(0, "bad_stream", "The server sent an event that is too long.")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._chars += len(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self.last_event_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)

    def _dispatch(self) -> ServerSentEvent | None:
        data, type = "\n".join(self._data), self._type or "message"
        event = ServerSentEvent(self.last_event_id, type, data) if self._data else None
        self._type, self._data, self._chars = "", [], 0
        return event


class FaceSwapClient:
    """A client of one service, used as `async with FaceSwapClient(url) as client`.

    `base_url` may have a path prefix. The caller closes a `session` that it passes. `resumes` is the number of times in
    a row that a cut stream or download is resumed. Every method raises `ClientError`.
    """

    def __init__(
        self,
        base_url: str | URL,
        session: aiohttp.ClientSession | None = None,
        api_key: str | None = None,
        *,
        resumes: int = RESUMES,
    ) -> None:
        self._base = str(base_url).rstrip("/")
        self._session = session
        self._owned = session is None
        self._resumes = resumes
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

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

    async def submit(
        self,
        video: Path | str,
        image: Path | str,
        *,
        output_name: str | None = None,
        options: Mapping[str, Any] | None = None,
        consent: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Submit a swap of the face in `image` into `video`; returns the job's `prompt_id` once the job is on disk.

        Each of the two is a file, streamed from disk, or an http(s) address as text, which the service fetches.
        """
        headers = {"Prefer": "respond-async"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        values: dict[str, Any] = {}
        if output_name is not None:
            values["output_name"] = output_name
        if consent is not None:
            values["consent"] = consent
        if options:
            values["options"] = dict(options)
        with contextlib.ExitStack() as stack:
            body: dict[str, Any]
            if is_url(video) and is_url(image):
                body = {"json": {"video_url": str(video), "image_url": str(image), **values}}
            else:
                body = {"data": _form(video, image, values, stack)}
            async with self._request("POST", "face-swap", headers=headers, **body) as response:
                return str((await response.json())["prompt_id"])

    async def watch(self, prompt_id: str, last_event_id: str | None = None) -> AsyncIterator[JobEvent]:
        """Yield the job's events, from its first or from the one after `last_event_id`, up to the one that ends it.

        The last event is the job's end; a job that was retried has earlier ends in between. After a cut connection or
        a restart of the service the stream is resumed where it was cut.
        """
        failures, pause_s, ended = 0, 0.5, False
        while True:
            cause = ClientError(0, "unreachable", "The event stream ended before the job did.")
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
            except ClientError as error:
                if error.status not in _TRANSIENT:
                    raise
                cause = error
            if ended:
                return
            if parser.retry_ms is not None:
                pause_s = parser.retry_ms / 1000
            failures += 1
            await self._pause(failures, pause_s, cause)

    async def status(self, prompt_id: str) -> dict[str, Any]:
        """Return the document of `GET /status/{prompt_id}`."""
        async with self._request("GET", "status", prompt_id) as response:
            return dict(await response.json())

    async def cancel(self, prompt_id: str) -> None:
        """Cancel the job; `ClientError` 409 when it has ended."""
        async with self._request("POST", "jobs", prompt_id, "cancel"):
            pass

    async def download(self, filename: str, destination: Path, *, sha256: str | None = None) -> None:
        """Download a result to `destination`, which is replaced in one step once all bytes are there, or not at all.

        A download that was cut is resumed where it stopped. With `sha256` (hex) a file that differs is refused.
        """
        partial = _PartialFile(destination)
        etag, failures = "", 0
        try:
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
                    break
                except ClientError as error:
                    if error.status not in _TRANSIENT:
                        raise
                    failures = 1 if partial.size > before else failures + 1
                    await self._pause(failures, 0.5, error)
            if sha256 is not None and partial.sha256 != sha256:
                raise ClientError(0, "damaged", "The result arrived damaged: its SHA-256 is not the one announced.")
            partial.keep()
        finally:
            partial.discard()

    async def _pause(self, failures: int, first_s: float, cause: ClientError) -> None:
        """Wait before the next try, twice as long each time; raises `cause` after the last one."""
        if failures > self._resumes:
            raise cause
        await asyncio.sleep(min(first_s * 2 ** (failures - 1), MAX_PAUSE_S))

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, *path: str, headers: Mapping[str, str] | None = None, **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        url = URL("/".join([self._base, *(quote(part, safe="") for part in path)]), encoded=True)
        headers = {**self._headers, **(headers or {})}
        try:
            async with self._session.request(method, url, headers=headers, timeout=_TIMEOUT, **body) as response:
                if response.status >= 400:
                    raise await _problem(response)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ClientError(0, "unreachable", f"No answer from {self._base}: {reason}.") from error


def is_url(value: Path | str) -> bool:
    """Tell whether an input is an address rather than a file."""
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def _form(
    video: Path | str, image: Path | str, values: Mapping[str, Any], stack: contextlib.ExitStack
) -> aiohttp.FormData:
    """Build the request as multipart; the files are open until `stack` closes."""
    form = aiohttp.FormData()
    for name, value in values.items():
        form.add_field(name, value if isinstance(value, str) else json.dumps(value))
    for name, source in (("image", image), ("video", video)):
        if is_url(source):
            form.add_field(f"{name}_url", str(source))
        else:
            file = stack.enter_context(Path(source).open("rb"))  # noqa: SIM115 - the stack closes it
            form.add_field(name, file, filename=name, content_type="application/octet-stream")
    return form


async def _problem(response: aiohttp.ClientResponse) -> ClientError:
    """Parse the error of a problem+json answer (RFC 9457), or of an answer of a proxy in between."""
    try:
        document = json.loads(await response.content.read(_CHUNK_BYTES))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    detail = document.get("detail") or document.get("title") or f"The server answered {response.status}."
    return ClientError(response.status, str(document.get("code", "http_error")), str(detail))


class _PartialFile:
    """A file that is written and hashed under a temporary name beside its destination."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination.resolve()
        if self._destination.exists() and not self._destination.is_file():
            raise ClientError(0, "not_a_file", f"{destination} is not a file that could be replaced.")
        self._path = self._destination.with_name(f".{self._destination.name}.{secrets.token_hex(4)}.part")
        self._file = self._path.open("wb")
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def keep(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(self._destination)

    def discard(self) -> None:
        """Close the file, and remove it unless it was kept."""
        self._file.close()
        self._path.unlink(missing_ok=True)
