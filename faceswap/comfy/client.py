"""The HTTP client of one ComfyUI: uploads, prompts, queries, downloads.

Every call has a time limit and every answer a size limit. A call that cannot be made raises `ComfyError`; a fault of
the job that ComfyUI reports raises `JobFailure`. Routes and answers are those of ComfyUI's `server.py`.
"""

from __future__ import annotations

import asyncio
import base64
import enum
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import aiofiles
import aiohttp
from aiofiles.threadpool.binary import AsyncFileIO
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from ..errors import JobFailure
from ..files import PIECE_BYTES, new_file
from .failures import PromptRejected, disk_full, failure_from_error
from .messages import Failed, Interrupted, OutputFile, decode_json, from_event, output_files

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
"""Time limit of a whole call that transfers no file."""
TRANSFER_TIMEOUT_S = 3600.0
"""Time limit of an upload or a download."""
SILENCE_TIMEOUT_S = 60.0
"""Time limit of any call between two reads."""
ANSWER_LIMIT_BYTES = 16 * 1024 * 1024
FORM_BYTES = 4096
"""Bytes of an upload request besides the file, at most."""

SOCKET_HEARTBEAT_S = 30.0
SOCKET_CLOSE_TIMEOUT_S = 2.0
SOCKET_MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024

BUSY = (408, 425, 429)
"""Statuses by which a proxy asks for the call to be repeated later."""
GATEWAY = (502, 503, 504)
"""Statuses by which a proxy reports that it did not reach ComfyUI."""
NOT_FOUND = 404
INSUFFICIENT_STORAGE = 507

FEATURE_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
"""First message on the WebSocket: previews shall name their prompt and node."""

_PROMPT_ID = re.compile(r"[\w.:-]{1,128}")
_GRAPH_NAME = re.compile(r"[\w ()+@,=-][\w .()+@,=-]*(?:/[\w ()+@,=-][\w .()+@,=-]*)*")


class ComfyError(Exception):
    """ComfyUI cannot be reached, or its answer is not a valid one.

    `message` is for a person and names no URL, header or path. `transient` is true when asking again may help.
    `answered` is true when ComfyUI itself answered with an error; false without an answer, or for a proxy's error.
    """

    def __init__(self, message: str, *, transient: bool, answered: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.transient = transient
        self.answered = answered


class Place(enum.Enum):
    """A prompt's place in ComfyUI's queue."""

    PENDING = "pending"
    """It waits for its turn."""
    RUNNING = "running"
    """ComfyUI works on it."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """The ids of the prompts that ComfyUI runs and of those that wait, in its order."""

    running: tuple[str, ...]
    pending: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a prompt, as history reports it.

    outputs  the files by node id
    failure  set for `error`
    swapped  the share (0–1) of frames in which a swap node changed a face, by node id; from the embedded engine only
    unused   the options of swaps that had no use; from the embedded engine only
    """

    state: Literal["success", "error", "interrupted"]
    outputs: Mapping[str, tuple[OutputFile, ...]]
    failure: JobFailure | None = None
    swapped: Mapping[str, float] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Features:
    """The limits and abilities of a ComfyUI.

    max_upload_size  bytes of a request, None when unknown
    streams          true when frames are decoded as needed: no clip is too long for its memory (embedded engine)
    """

    max_upload_size: int | None
    streams: bool = False


class ComfyClient:
    """A client of the ComfyUI at `base_url`, which may be https and may have a path prefix.

    `headers` are sent with every call and never logged; credentials in the URL become such a header. `url` is the
    address without credentials, for logs and users.
    """

    def __init__(self, base_url: URL, session: aiohttp.ClientSession, headers: Mapping[str, str] | None = None) -> None:
        self.url = base_url.with_user(None).with_query(None).with_fragment(None)
        self.has_jobs = False
        """True for a newer ComfyUI, which has `/api/jobs`: set by `find_jobs`."""
        self._known_features: Features | None = None
        self._session = session
        self._headers = dict(headers or {})
        if base_url.user is not None and "authorization" not in {name.lower() for name in self._headers}:
            credentials = f"{base_url.user}:{base_url.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"

    async def upload(self, path: Path, filename: str, subfolder: str) -> str:
        """Stream the file at `path` into ComfyUI's input folder; return its name for the graph (`sub/clip.mp4`).

        The name is taken from the answer: ComfyUI renames a file when another of that name has other bytes. Raises
        `JobFailure` `upload_too_large` or `engine_disk_full`, `ComfyError`, and `OSError` when `path` cannot be read.
        """
        content = await asyncio.to_thread(_read_piece, path)
        if content is not None:
            return await self._upload(aiohttp.BytesPayload(content), len(content), filename, subfolder)
        async with aiofiles.open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return await self._upload(_FilePayload(file, size), size, filename, subfolder)

    async def _upload(self, content: aiohttp.Payload, size: int, filename: str, subfolder: str) -> str:
        await self._check_upload_size(size)
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("image", content, filename=filename)
        form.add_field("subfolder", subfolder)
        form.add_field("type", "input")
        async with self._call("POST", "upload/image", data=form, timeout=TRANSFER_TIMEOUT_S) as response:
            if response.status == 413:
                raise _too_large(size, None)
            if response.status == INSUFFICIENT_STORAGE:
                raise disk_full()
            answer = await _document(response)
        match answer:
            case {"name": str(name), "subfolder": str(folder)}:
                graph_name = f"{folder}/{name}" if folder else name
                if _GRAPH_NAME.fullmatch(graph_name):
                    return graph_name
        raise ComfyError("ComfyUI stored the upload under a name that cannot be used.", transient=False)

    async def empty(self, kind: str, subfolder: str, name: str) -> None:
        """Replace a file in one of ComfyUI's folders, if it is there, by an empty one: no call deletes one.

        Raises `ComfyError`.
        """
        query = {"type": kind, "subfolder": subfolder, "filename": name}
        async with self._call("HEAD", "view", params=query) as response:
            if response.status == NOT_FOUND:
                return
            _check_status(response)
            if response.content_length == 0:
                return
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("image", b"", filename=name, content_type="application/octet-stream")
        form.add_field("subfolder", subfolder)
        form.add_field("type", kind)
        form.add_field("overwrite", "true")
        async with self._call("POST", "upload/image", data=form) as response:
            _check_status(response)

    async def submit(
        self,
        graph: Mapping[str, Any],
        client_id: str,
        prompt_id: str,
        extra_data: Mapping[str, Any] | None = None,
        *,
        output_node: str | None = None,
    ) -> str:
        """Queue a graph; return the prompt's id, which an older ComfyUI chooses itself.

        Raises `PromptRejected` when ComfyUI refuses the graph, or accepts it without `output_node` (None: without any
        of its outputs); the prompt is then withdrawn. After a transient `ComfyError` it may still have been queued:
        look for `prompt_id` before sending it again, because the same id posted twice runs twice.
        """
        body = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id, "extra_data": extra_data or {}}
        async with self._call("POST", "prompt", json=body) as response:
            if response.status == 400:
                raise PromptRejected.from_body(await _document(response, expected=400))
            answer = await _document(response)
        match answer:
            case {"prompt_id": str(queued_id)} if _PROMPT_ID.fullmatch(queued_id):
                if _output_dropped(answer.get("node_errors"), output_node):
                    with suppress(ComfyError):
                        await self.cancel_pending(queued_id)
                        await self.interrupt(queued_id)
                    raise PromptRejected.from_body(answer)
                return queued_id
        raise ComfyError("ComfyUI took the prompt without naming its id.", transient=True)

    async def queue(self) -> QueueState:
        """Return the prompts that run and that wait."""
        match await self._get("queue"):
            case {"queue_running": [*running], "queue_pending": [*pending]}:
                return QueueState(_queued_ids(running), _queued_ids(pending))
        raise _unexpected("its queue")

    async def outcome(self, prompt_id: str) -> Outcome | None:
        """Return a prompt's end; None when history does not have it: it has not ended, or ComfyUI was restarted."""
        match await self._get("history", prompt_id):
            case {**entries}:
                return _outcome_of(entries.get(prompt_id))
        raise _unexpected("its history")

    async def find_jobs(self) -> None:
        """Set `has_jobs`: a newer ComfyUI reports history and queue in one answer.

        A 404 for a prompt means that it is unknown only when the route itself exists.
        """
        async with self._call("GET", "api/jobs", params={"limit": "1"}) as response:
            answer = await _document(response) if response.status == 200 else None
        self.has_jobs = isinstance(answer, dict) and isinstance(answer.get("jobs"), list)

    async def look(self, prompt_id: str) -> Outcome | Place | None:
        """Return a prompt's end, or its place in the queue; None when ComfyUI does not know it."""
        if self.has_jobs:
            return await self._job(prompt_id)
        outcome = await self.outcome(prompt_id)
        if outcome is not None:
            return outcome
        queue = await self.queue()
        if prompt_id in queue.running:
            return Place.RUNNING
        if prompt_id in queue.pending:
            return Place.PENDING
        # It may have ended between the two questions.
        return await self.outcome(prompt_id)

    async def _job(self, prompt_id: str) -> Outcome | Place | None:
        """Return the same as `look`, from one call."""
        async with self._call("GET", "api/jobs", prompt_id) as response:
            answer = await _document(response, expected=404 if response.status == 404 else 200)
        match answer:
            case {"error": _}:
                return None
            case {"status": "pending"}:
                return Place.PENDING
            case {"status": "in_progress"}:
                return Place.RUNNING
            case {"execution_status": status, "outputs": outputs}:
                return _outcome_of({"status": status, "outputs": outputs})
        raise _unexpected("a job")

    async def stop(self, prompt_id: str, place: Place) -> None:
        """Ask for a prompt's end. An older ComfyUI interrupts whatever runs: it is asked only when that is ours."""
        if self.has_jobs:
            async with self._call("POST", "api/jobs", prompt_id, "cancel") as response:
                if response.status == 200:
                    return
        if place is Place.RUNNING:
            await self.interrupt(prompt_id)
        else:
            await self.cancel_pending(prompt_id)

    async def cancel_pending(self, prompt_id: str) -> None:
        """Remove a waiting prompt from the queue; history will not have it. A running prompt is not affected."""
        await self._post("queue", {"delete": [prompt_id]})

    async def interrupt(self, prompt_id: str) -> None:
        """Ask for a running prompt to stop at its next progress step.

        ComfyUI may lose a request that comes soon after `submit`: repeat it until the id has left the queue.
        """
        await self._post("interrupt", {"prompt_id": prompt_id})

    async def download(self, file: OutputFile, destination: Path, max_bytes: int) -> int:
        """Stream a result to `destination`, which is then complete or absent; return its size in bytes.

        Raises `JobFailure` `output_missing` or `output_too_large`, `ComfyError` (transient when the body is cut short),
        and `OSError` when it cannot be written.
        """
        if "/" in file.filename or "\\" in file.filename or ".." in PurePosixPath(file.subfolder).parts:
            raise JobFailure("output_missing", "ComfyUI named a result outside of its folders; it was not fetched.")
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        async with self._call("GET", "view", params=query, timeout=TRANSFER_TIMEOUT_S) as response:
            if response.status == 404:
                raise JobFailure("output_missing", "ComfyUI no longer has the result.", transient=True)
            _check_status(response)
            async with new_file(destination) as result:
                async for piece in response.content.iter_any():
                    if result.size + len(piece) > max_bytes:
                        raise JobFailure("output_too_large", f"The result is larger than {max_bytes // 2**20} MB.")
                    await result.write(piece)
        return result.size

    async def object_info(self, node_class: str) -> dict[str, Any] | None:
        """Return a node class's inputs with their choices; None when ComfyUI does not have the class."""
        match await self._get("object_info", node_class):
            case {**classes}:
                info = classes.get(node_class)
                if info is None or isinstance(info, dict):
                    return info
        raise _unexpected("a node class")

    async def features(self) -> Features:
        """Ask for the limits and abilities. An older ComfyUI has no `/features`: its limit is unknown."""
        self._known_features = await self._ask_for_features()
        return self._known_features

    async def known_features(self) -> Features:
        """Return the limits and abilities as they were told last, since the last `forget`; ask where they were not."""
        return self._known_features or await self.features()

    def forget(self) -> None:
        """Forget what was told: it may be another version by now."""
        self.has_jobs = False
        self._known_features = None

    async def _ask_for_features(self) -> Features:
        async with self._call("GET", "features") as response:
            if response.status == 404:
                return Features(None)
            answer = await _document(response)
        streams = isinstance(answer, dict) and answer.get("faceswap_streams") is True
        match answer:
            case {"max_upload_size": int() | float() as limit} if 0 < limit < 2**63:
                return Features(int(limit), streams)
        return Features(None, streams)

    async def free(self, *, models: bool = True) -> None:
        """Ask ComfyUI to free memory once nothing runs, and to unload its `models` too."""
        await self._post("free", {"unload_models": models, "free_memory": True})

    async def free_memory(self) -> int | None:
        """Return the free bytes of the machine's memory; None when unknown."""
        match await self._get("system_stats"):
            case {"system": {"ram_free": int() | float() as free_bytes}} if 0 < free_bytes < 2**63:
                return int(free_bytes)
            case {"system": {}}:
                return None
        raise _unexpected("itself")

    async def open_socket(self, client_id: str) -> aiohttp.ClientWebSocketResponse:
        """Open the WebSocket of a client id and ask for previews that name their prompt. The caller closes it."""
        with _transport_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                socket = await self._session.ws_connect(
                    self.url / "ws",
                    params={"clientId": client_id},
                    headers=self._headers,
                    heartbeat=SOCKET_HEARTBEAT_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=SOCKET_CLOSE_TIMEOUT_S),
                    max_msg_size=SOCKET_MESSAGE_LIMIT_BYTES,
                )
            await socket.send_json(FEATURE_FLAGS)
            return socket

    async def _check_upload_size(self, size: int) -> None:
        """Refuse a file that ComfyUI would refuse: it would cut the connection while the bytes are sent."""
        try:
            limit = (await self.known_features()).max_upload_size
        except ComfyError:
            return
        if limit is not None and size + FORM_BYTES > limit:
            raise _too_large(size, limit)

    async def _get(self, *path: str) -> Any:
        async with self._call("GET", *path) as response:
            return await _document(response)

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._call("POST", path, json=body) as response:
            _check_status(response)

    @asynccontextmanager
    async def _call(
        self, method: str, *path: str, timeout: float = ANSWER_TIMEOUT_S, **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make a call; the block reads the answer. Errors of the transport become a `ComfyError`."""
        url = self.url.joinpath(*(quote(part, safe="/" if part is path[0] else "") for part in path), encoded=True)
        limits = aiohttp.ClientTimeout(timeout, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
        with _transport_errors():
            async with self._session.request(
                method, url, headers=self._headers, timeout=limits, allow_redirects=False, **arguments
            ) as response:
                yield response


def _read_piece(path: Path) -> bytes | None:
    """Return what a file holds, where that is no more than one piece: one call to a thread is enough for it."""
    with path.open("rb", buffering=0) as file:
        return file.read() if os.fstat(file.fileno()).st_size <= PIECE_BYTES else None


class _FilePayload(aiohttp.Payload):
    """A file of a known size as part of a form, read in a thread in pieces larger than aiohttp's own."""

    def __init__(self, file: AsyncFileIO, size: int) -> None:
        super().__init__(file, content_type="application/octet-stream")
        self._size: int = size

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the file from its current position."""
        left = self._size
        while left > 0 and (piece := await self._value.read(PIECE_BYTES)):
            await writer.write(piece)
            left -= len(piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Refuse: the file is not held in memory."""
        raise NotImplementedError


@contextmanager
def _transport_errors() -> Iterator[None]:
    """Turn aiohttp's errors into `ComfyError`, without their text, which has addresses and headers."""
    try:
        yield
    except TimeoutError as error:
        raise ComfyError("ComfyUI did not answer in time.", transient=True) from error
    except aiohttp.ClientResponseError as error:
        raise _answered(error.status) from error
    except aiohttp.InvalidURL as error:
        raise ComfyError("ComfyUI's address is not a valid URL.", transient=False) from error
    except aiohttp.ClientPayloadError as error:
        raise ComfyError("ComfyUI broke off in the middle of its answer.", transient=True) from error
    except aiohttp.ClientError as error:
        raise ComfyError("ComfyUI cannot be reached.", transient=True) from error


def _check_status(response: aiohttp.ClientResponse, expected: int = 200) -> None:
    if response.status != expected:
        raise _answered(response.status)


def _answered(status: int) -> ComfyError:
    if status in (401, 403):
        return ComfyError(f"ComfyUI refused the call ({status}); check FACESWAP_COMFYUI_HEADERS.", transient=False)
    return ComfyError(
        f"ComfyUI answered {status}; its log may say why.",
        transient=status >= 500 or status in BUSY,
        answered=status not in GATEWAY,
    )


async def _document(response: aiohttp.ClientResponse, expected: int = 200) -> Any:
    """Return the JSON of an answer. Raises `ComfyError` for another status, a long answer, or other content."""
    _check_status(response, expected)
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_LIMIT_BYTES:
            raise ComfyError("ComfyUI's answer is too long.", transient=False)
    try:
        return decode_json(bytes(body))
    except ValueError as error:
        message = "What answers in ComfyUI's place sends no JSON; check the address in FACESWAP_COMFYUI_URLS."
        raise ComfyError(message, transient=False) from error


def _queued_ids(entries: list[object]) -> tuple[str, ...]:
    ids = []
    for entry in entries:
        match entry:
            case [_, str(prompt_id), *_]:
                ids.append(prompt_id)
            case _:
                raise _unexpected("its queue")
    return tuple(ids)


def _files_by_node(outputs: Mapping[Any, object]) -> dict[str, tuple[OutputFile, ...]]:
    return {node: output_files(output) for node, output in outputs.items()}


def _outcome_of(entry: object) -> Outcome | None:
    """Return the end that an entry of history reports. Only the messages tell an interrupted prompt from an error."""
    match entry:
        case {"status": {"status_str": "success"}, "outputs": {**outputs}, **rest}:
            told = rest.get("faceswap")
            return Outcome("success", _files_by_node(outputs), swapped=_swapped(told), unused=_unused(told))
        case {"status": {"status_str": "error", "messages": [*messages]}, "outputs": {**outputs}}:
            return _unsuccessful(messages, _files_by_node(outputs))
        case {"status": {"status_str": "success" | "error"}}:
            raise _unexpected("its history")
        case None | {"status": None | {"status_str": _}}:
            return None
    raise _unexpected("its history")


def _swapped(counts: object) -> dict[str, float]:
    """Return the share of frames that each swap node changed, without the counts that make no sense."""
    shares = {}
    for node, count in counts.items() if isinstance(counts, dict) else ():
        match count:
            case {"frames": int(frames), "swapped": int(swapped)} if 0 <= swapped <= frames != 0:
                shares[node] = swapped / frames
    return shares


def _unused(counts: object) -> frozenset[str]:
    """Return the options that had no use in any swap node, without what is none."""
    told = counts.values() if isinstance(counts, dict) else ()
    lists = [count.get("unused") for count in told if isinstance(count, dict)]
    return frozenset(name for names in lists if isinstance(names, list) for name in names if isinstance(name, str))


def _unsuccessful(messages: list[object], outputs: Mapping[str, tuple[OutputFile, ...]]) -> Outcome:
    """Tell an interruption from an error by the events, which history lists as `[kind, data]`."""
    for message in messages:
        match message:
            case [str(kind), data]:
                event = from_event(kind, data)
                if isinstance(event, Interrupted):
                    return Outcome("interrupted", outputs)
                if isinstance(event, Failed):
                    failure = failure_from_error(event.node_type, event.exception_type, event.message)
                    return Outcome("error", outputs, failure)
    return Outcome("error", outputs, failure_from_error("", "", ""))


def _output_dropped(node_errors: object, output_node: str | None) -> bool:
    """Return whether the errors of an accepted prompt affect our output."""
    match node_errors:
        case {**errors} if errors and output_node is not None:
            return output_node in errors or any(_takes_down(error, output_node) for error in errors.values())
    return bool(node_errors)


def _takes_down(node_error: object, output_node: str) -> bool:
    match node_error:
        case {"dependent_outputs": [*outputs]}:
            return output_node in outputs
    return True


def _too_large(size: int, limit: int | None) -> JobFailure:
    needed = -(-(size + FORM_BYTES) // 2**20)
    allowed = f" (its limit is {limit // 2**20} MB)" if limit is not None else ""
    return JobFailure(
        "upload_too_large",
        f"ComfyUI does not take a file of {needed} MB{allowed}; start it with --max-upload-size {needed}"
        " and raise the limit of any proxy in front of it.",
    )


def _unexpected(what: str) -> ComfyError:
    return ComfyError(f"ComfyUI described {what} in a way that is not understood.", transient=False)
