"""The client against a real HTTP server that plays the contract, with the faults a network has."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import sysconfig
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from processes import dead_url
from waiting import WAIT_S

import faceswap
from faceswap import blocking
from faceswap.api.schemas import SCHEMAS
from faceswap.client import (
    MAX_EVENT_CHARS,
    EventStreamParser,
    Face,
    Faces,
    FaceSwap,
    FaceSwapError,
    JobFailed,
    JobStatus,
    ServerSentEvent,
    Upload,
    service,
)

Serve = Callable[..., Awaitable[str]]
RESULT = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def patient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client wait for what it takes back on a machine that stands still."""
    monkeypatch.setattr(service, "CANCEL_TIMEOUT_S", WAIT_S)


@pytest.fixture
async def serve(aiohttp_server: Callable[..., Awaitable[object]]) -> Serve:
    """Start a server with these routes; gives its address."""

    async def start(*routes: web.RouteDef) -> str:
        app = web.Application()
        app.add_routes(routes)
        server = await aiohttp_server(app)
        return str(server.make_url("/"))

    return start


def parse(*chunks: bytes) -> list[ServerSentEvent]:
    parser = EventStreamParser()
    return [message for chunk in chunks for message in parser.feed(chunk)]


STREAM = (
    '\ufeffretry: 250\n: a comment\n\nid: 1\nevent: queued\ndata: {"a": "ü 🌌"}\n\n'
    "data:first\r\ndata: second\r\ndata\r\n\r\nevent: no data\n\n:\rid\rdata: x\r\revent:e\nid: 7\ndata: last\n\n"
).encode()
MESSAGES = [
    ServerSentEvent("1", "queued", '{"a": "ü 🌌"}'),
    ServerSentEvent("1", "message", "first\nsecond\n"),
    ServerSentEvent("", "message", "x"),
    ServerSentEvent("7", "e", "last"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_an_event_stream_reads_the_same_wherever_it_is_cut_into_chunks(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parse(*(STREAM[start:end] for start, end in itertools.pairwise(edges))) == MESSAGES


def test_an_event_stream_reads_the_same_byte_by_byte() -> None:
    assert parse(*(STREAM[position : position + 1] for position in range(len(STREAM)))) == MESSAGES


def test_a_message_that_the_end_of_the_stream_cuts_short_is_not_dispatched() -> None:
    assert parse(b"data: whole\n\ndata: half\n") == [ServerSentEvent("", "message", "whole")]


def test_an_id_with_a_null_and_a_retry_that_is_no_number_are_ignored() -> None:
    parser = EventStreamParser()
    assert list(parser.feed(b"id: 3\nid: 4\0\nretry: 5s\ndata: x\n\n")) == [ServerSentEvent("3", "message", "x")]
    assert parser.retry_ms is None


def test_an_endless_event_is_refused() -> None:
    parser = EventStreamParser()
    with pytest.raises(FaceSwapError, match="too long"):
        for _ in range(MAX_EVENT_CHARS // 65536 + 1):
            list(parser.feed(b"x" * 65536))


def sse(number: int, kind: str, **data: object) -> bytes:
    return f"retry: 1\nid: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def stream(request: web.Request, *parts: bytes, cut: bool = False) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    if cut and request.transport is not None:
        request.transport.close()
    return response


async def test_a_cut_event_stream_is_resumed_after_the_last_event_that_arrived_whole(serve: Serve) -> None:
    asked: list[str | None] = []

    async def events(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Last-Event-ID"))
        match len(asked):
            case 1:
                return await stream(request, sse(1, "queued"), sse(2, "executing"), sse(3, "progress")[:-9], cut=True)
            case 2:
                raise web.HTTPServiceUnavailable
            case _:
                return await stream(request, sse(3, "progress", percentage=100), sse(4, "completed"))

    async with FaceSwap(await serve(web.get("/events/job", events))) as client:
        events_seen = [(event.id, event.type) async for event in client.events("job")]
    assert events_seen == [("1", "queued"), ("2", "executing"), ("3", "progress"), ("4", "completed")]
    assert asked == [None, "2", "2"]


async def test_watching_starts_after_the_event_that_is_named(serve: Serve) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        return await stream(request, sse(int(request.headers["Last-Event-ID"]) + 1, "cancelled"))

    async with FaceSwap(await serve(web.get("/events/job", events))) as client:
        assert [event.id async for event in client.events("job", last_event_id="41")] == ["42"]


async def test_a_job_that_was_retried_is_watched_past_its_first_end(serve: Serve) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        return await stream(request, sse(1, "error"), sse(2, "queued"), sse(3, "completed"))

    async with FaceSwap(await serve(web.get("/events/job", events))) as client:
        assert [event.type async for event in client.events("job")] == ["error", "queued", "completed"]


async def test_a_stream_that_never_gets_anywhere_is_given_up(serve: Serve) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        return await stream(request, b"retry: 1\n\n")

    async with FaceSwap(await serve(web.get("/events/job", events))) as client:
        with pytest.raises(FaceSwapError, match="ended before the job did"):
            _ = [event async for event in client.events("job")]


async def test_an_unknown_job_is_told_at_once_with_the_services_own_sentence(serve: Serve) -> None:
    calls = 0

    async def refuse(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        body = {"status": 404, "title": "Not found", "code": "unknown_job", "detail": "There is no such job."}
        return web.json_response(body, status=404, content_type="application/problem+json")

    async with FaceSwap(await serve(web.get("/events/job", refuse), web.get("/status/job", refuse))) as client:
        with pytest.raises(FaceSwapError) as watching:
            _ = [event async for event in client.events("job")]
        with pytest.raises(FaceSwapError) as asking:
            await client.status("job")
    for error in (watching.value, asking.value):
        assert (error.status, error.code, error.detail) == (404, "unknown_job", "There is no such job.")
    assert calls == 2


async def test_an_error_page_of_a_proxy_still_makes_a_sentence(serve: Serve) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>Bad gateway</html>", content_type="text/html")

    async with FaceSwap(await serve(web.post("/jobs/job/cancel", refuse))) as client:
        with pytest.raises(FaceSwapError, match=r"The server answered 502\.") as caught:
            await client.cancel("job")
    assert (caught.value.status, caught.value.code) == (502, "http_error")


async def test_no_server_at_all_is_an_error_without_status() -> None:
    async with FaceSwap(dead_url()) as client:
        with pytest.raises(FaceSwapError, match="No answer from") as caught:
            await client.status("job")
    assert (caught.value.status, caught.value.code) == (0, "unreachable")


@pytest.fixture
def submissions() -> list[dict[str, object]]:
    return []


@pytest.fixture
def accept(submissions: list[dict[str, object]]) -> web.RouteDef:
    """Make a route `POST /face-swap` under a path prefix, which keeps its requests."""

    async def handler(request: web.Request) -> web.Response:
        fields: dict[str, object] = {"headers": request.headers}
        async for part in await request.multipart():
            content = bytes(await part.read())
            fields[str(part.name)] = (part.filename, content) if part.filename else content.decode()
        submissions.append(fields)
        return web.json_response({"prompt_id": "job"}, status=202)

    return web.post("/prefix/face-swap", handler)


async def test_files_are_sent_as_multipart(
    serve: Serve, accept: web.RouteDef, submissions: list[dict[str, object]], tmp_path: Path
) -> None:
    video, image = tmp_path / "clip ü.mp4", tmp_path / "face.jpg"
    video.write_bytes(RESULT)
    image.write_bytes(b"face")
    async with FaceSwap(await serve(accept) + "prefix/", key="secret") as client:
        prompt_id = await client.submit(
            video,
            str(image),
            output_name="mine",
            options={"crf": 18, "face_boost": True},
            consent="form 12",
            idempotency_key="once",
        )
    (sent,) = submissions
    assert prompt_id == "job"
    assert sent["video"] == ("video", RESULT)
    assert sent["image"] == ("image", b"face")
    assert (sent["output_name"], sent["consent"]) == ("mine", "form 12")
    assert json.loads(str(sent["options"])) == {"crf": 18, "face_boost": True}
    headers = sent["headers"]
    assert headers["Prefer"] == "respond-async"  # type: ignore[index]
    assert headers["Idempotency-Key"] == "once"  # type: ignore[index]
    assert headers["Authorization"] == "Bearer secret"  # type: ignore[index]


async def test_a_file_and_an_address_may_be_mixed(
    serve: Serve, accept: web.RouteDef, submissions: list[dict[str, object]], tmp_path: Path
) -> None:
    image = tmp_path / "face.jpg"
    image.write_bytes(b"face")
    async with FaceSwap(await serve(accept) + "prefix") as client:
        await client.submit("https://example.org/clip.mp4", image)
    (sent,) = submissions
    assert (sent["video_url"], sent["image"]) == ("https://example.org/clip.mp4", ("image", b"face"))


async def test_two_addresses_are_sent_as_fields(
    serve: Serve, accept: web.RouteDef, submissions: list[dict[str, object]]
) -> None:
    async with FaceSwap(await serve(accept) + "prefix") as client:
        await client.submit("https://example.org/clip.mp4", "http://example.org/face.jpg", options={"crf": 30})
    (sent,) = submissions
    assert (sent["video_url"], sent["image_url"]) == ("https://example.org/clip.mp4", "http://example.org/face.jpg")
    assert sent["options"] == '{"crf": 30}'


async def test_several_pictures_are_sent_in_order_and_an_upload_by_its_id(serve: Serve, tmp_path: Path) -> None:
    parts: list[tuple[str | None, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        parts.extend([(part.name, bytes(await part.read())) async for part in await request.multipart()])
        return web.json_response({"prompt_id": "job"}, status=202)

    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.write_bytes(file.name.encode())
    told: list[tuple[int, int]] = []
    async with FaceSwap(await serve(web.post("/face-swap", handler))) as client:
        await client.submit(Upload("up-1"), files, label="mine", on_upload=lambda *sizes: told.append(sizes))
    assert parts == [("label", b"mine"), ("image", b"a.png"), ("image", b"b.png"), ("video_upload", b"up-1")]
    assert told[-1] == (10, 10)


async def test_a_submission_that_is_cut_off_or_put_off_is_repeated_under_the_same_key(
    serve: Serve, tmp_path: Path
) -> None:
    keys: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        keys.append(request.headers["Idempotency-Key"])
        body = await request.read()
        assert b"the face" in body
        if len(keys) == 1:
            assert request.transport is not None
            request.transport.abort()
        if len(keys) == 2:
            return web.Response(status=429, headers={"Retry-After": "0"})
        return web.json_response({"prompt_id": "job"}, status=202)

    (tmp_path / "face.png").write_bytes(b"the face")
    async with FaceSwap(await serve(web.post("/face-swap", handler))) as client:
        assert await client.submit("https://example.org/clip.mp4", tmp_path / "face.png") == "job"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def ending(*events: bytes) -> web.RouteDef:
    """Make a route of a job whose stream has these events."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, *events)

    return web.get("/events/job", handler)


@pytest.mark.parametrize(
    ("end", "code", "detail"),
    [
        (sse(2, "error", detail="No face.", code="no_face_detected", prompt_id="job"), "no_face_detected", "No face."),
        (sse(2, "cancelled", message="Face swap cancelled."), "cancelled", "Face swap cancelled."),
    ],
)
async def test_a_job_without_a_result_is_a_job_that_failed(serve: Serve, end: bytes, code: str, detail: str) -> None:
    seen: list[str] = []
    async with FaceSwap(await serve(ending(sse(1, "queued"), end))) as client:
        with pytest.raises(JobFailed) as failed:
            await client.wait("job", on_event=lambda event: seen.append(event.type))
    assert (failed.value.prompt_id, failed.value.code, failed.value.detail) == ("job", code, detail)
    assert seen[0] == "queued"
    assert not failed.value.transient


async def test_a_swap_is_one_call_and_who_cancels_it_cancels_the_job(
    serve: Serve, accept: web.RouteDef, tmp_path: Path
) -> None:
    cancelled = asyncio.Event()
    watched = asyncio.Event()

    async def cancel(_: web.Request) -> web.Response:
        cancelled.set()
        return web.json_response({"status": "PROCESSING"}, status=202)

    async def held(request: web.Request) -> web.StreamResponse:
        watched.set()
        response = await stream(request, sse(1, "queued"))
        await cancelled.wait()
        return response

    face, clip, output = (tmp_path / name for name in ("face.png", "clip.mp4", "out.mp4"))
    face.write_bytes(b"face")
    clip.write_bytes(b"clip")
    routes = accept, Result(cuts=0).route
    data = {"prompt_id": "job", "filename": "my result.mp4", "bytes": len(RESULT), "sha256": SHA256, "warnings": ["!"]}
    prefix = [web.route(route.method, route.path.replace("/prefix", ""), route.handler) for route in routes]
    async with faceswap.FaceSwap(await serve(*prefix, ending(sse(1, "completed", **data)))) as client:
        result = await client.swap(clip, face, output)
    assert (result.path, result.warnings, output.read_bytes()) == (output, ("!",), RESULT)
    cancelling = web.post("/jobs/job/cancel", cancel)
    async with faceswap.FaceSwap(await serve(*prefix, web.get("/events/job", held), cancelling)) as client:
        swapping = asyncio.create_task(client.swap(clip, face, output))
        await watched.wait()
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
    assert cancelled.is_set()


@pytest.mark.parametrize("is_sent", [True, False])
async def test_who_cancels_a_submission_cancels_the_job_that_it_becomes(
    serve: Serve, tmp_path: Path, is_sent: bool
) -> None:
    asked, answered, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def accept(request: web.Request) -> web.Response:
        if is_sent:
            await request.read()
        asked.set()
        await answered.wait()
        return web.json_response({"prompt_id": "job"}, status=202)

    async def cancel(_: web.Request) -> web.Response:
        cancelled.set()
        return web.json_response({"status": "CANCELLED"})

    face = tmp_path / "face.png"
    with face.open("wb") as file:
        file.truncate(1000 if is_sent else 64 << 20)  # more than a connection takes that nobody reads
    url = await serve(web.post("/face-swap", accept), web.post("/jobs/job/cancel", cancel))
    async with FaceSwap(url) as client:
        submitting = asyncio.create_task(client.submit(image=face, from_job="other"))
        await asked.wait()
        submitting.cancel()
        asyncio.get_running_loop().call_soon(answered.set)  # when it waits for the answer
        with pytest.raises(asyncio.CancelledError):
            await submitting
    assert cancelled.is_set() == is_sent


async def test_all_jobs_are_listed_page_by_page_up_to_the_limit(serve: Serve) -> None:
    queries: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        start = int(request.query.get("cursor", 0))
        page = [{"prompt_id": str(number)} for number in range(start, min(start + int(request.query["limit"]), 250))]
        return web.json_response(
            {"jobs": page, "next_cursor": str(start + len(page)) if start + len(page) < 250 else None}
        )

    async with FaceSwap(await serve(web.get("/jobs", handler))) as client:
        assert [job["prompt_id"] async for job in client.jobs(status="FAILED")] == [str(n) for n in range(250)]
        assert [job["prompt_id"] async for job in client.jobs(label="x", limit=120)] == [str(n) for n in range(120)]
    assert queries[0] == {"status": "FAILED", "limit": "100"}
    assert queries[3] == {"label": "x", "limit": "100"}


class Tus:
    """A tus server that takes in half of what it is sent, as often as it is told to, before the connection breaks."""

    def __init__(self, cuts: int) -> None:
        self.cuts = cuts
        self.data = bytearray()
        self.length = 0
        self.deleted = False
        self.offsets: list[int] = []

    @property
    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/uploads", self._create),
            web.head("/uploads/up-1", self._head),
            web.patch("/uploads/up-1", self._patch),
            web.delete("/uploads/up-1", self._delete),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        self.length = int(request.headers["Upload-Length"])
        return web.Response(status=201, headers={"Location": "/uploads/up-1"})

    async def _head(self, request: web.Request) -> web.Response:
        return web.Response(headers={"Upload-Offset": str(len(self.data)), "Upload-Length": str(self.length)})

    async def _delete(self, request: web.Request) -> web.Response:
        self.deleted = True
        return web.Response(status=204)

    async def _patch(self, request: web.Request) -> web.Response:
        offset = int(request.headers["Upload-Offset"])
        if offset != len(self.data):
            return web.Response(status=409)
        self.offsets.append(offset)
        if len(self.offsets) <= self.cuts:
            self.data += await request.content.readexactly((self.length - offset) // 2)
            assert request.transport is not None
            request.transport.abort()
        else:
            self.data += await request.read()
        return web.Response(status=204, headers={"Upload-Offset": str(len(self.data))})


async def test_a_cut_upload_goes_on_where_it_broke_off(serve: Serve, tmp_path: Path) -> None:
    tus, file = Tus(cuts=2), tmp_path / "clip.mp4"
    file.write_bytes(RESULT)
    async with FaceSwap(await serve(*tus.routes)) as client:
        assert await client.upload(file) == Upload("up-1")
    assert bytes(tus.data) == RESULT
    assert tus.offsets == [0, len(RESULT) // 2, len(RESULT) * 3 // 4]


async def test_a_file_that_becomes_shorter_while_it_is_sent_is_told(serve: Serve, tmp_path: Path) -> None:
    tus, file = Tus(cuts=0), tmp_path / "clip.mp4"
    file.write_bytes(RESULT)

    async def shorten(_: web.Request) -> web.Response:
        file.write_bytes(RESULT[:100])
        return web.Response(status=201, headers={"Location": "/uploads/up-1"})

    routes = [route for route in tus.routes if route.method != "POST"]
    async with FaceSwap(await serve(*routes, web.post("/uploads", shorten))) as client:
        with pytest.raises(FaceSwapError, match="shorter"):
            async with asyncio.timeout(WAIT_S):
                await client.upload(file)
    assert tus.offsets == [0, 100] and tus.deleted


async def test_an_upload_that_is_given_up_is_erased(serve: Serve, tmp_path: Path) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=410)

    clip, tus = tmp_path / "clip.mp4", Tus(cuts=0)
    clip.write_bytes(RESULT)
    routes = [route for route in tus.routes if route.method != "PATCH"]
    async with FaceSwap(await serve(*routes, web.patch("/uploads/up-1", refuse))) as client:
        with pytest.raises(FaceSwapError):
            await client.upload(clip)
    assert tus.deleted


async def test_a_large_video_is_sent_as_an_upload_that_is_erased_when_the_job_has_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[str | None, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        assert not tus.deleted
        parts.extend([(part.name, bytes(await part.read())) async for part in await request.multipart()])
        return web.json_response({"prompt_id": "job"}, status=202)

    monkeypatch.setattr("faceswap.client.service.RESUMABLE_BYTES", 1000)
    tus, file, face = Tus(cuts=1), tmp_path / "clip.mp4", tmp_path / "face.png"
    file.write_bytes(RESULT)
    face.write_bytes(b"face")
    told: list[tuple[int, int]] = []
    async with FaceSwap(await serve(*tus.routes, web.post("/face-swap", handler))) as client:
        await client.submit(file, face, on_upload=lambda *sizes: told.append(sizes))
    assert parts == [("image", b"face"), ("video_upload", b"up-1")]
    assert told[-1] == (len(RESULT) + 4, len(RESULT) + 4)
    assert tus.deleted


async def test_every_error_is_a_face_swap_error(serve: Serve, tmp_path: Path) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Sign in</html>", content_type="text/html")

    async with FaceSwap(await serve(web.get("/status/job", page), Result(cuts=0).route)) as client:
        for call, code in (
            (client.submit(tmp_path / "nowhere.mp4", "http://example.org/face.png"), "file"),
            (client.upload(tmp_path / "nowhere.mp4"), "file"),
            (client.download("my result.mp4", tmp_path / "nowhere" / "out.mp4"), "file"),
            (client.status("job"), "bad_answer"),
        ):
            with pytest.raises(FaceSwapError) as raised:
                await call
            assert raised.value.code == code
            assert not raised.value.transient


async def test_the_blocking_client_does_the_same_without_a_loop(serve: Serve, tmp_path: Path) -> None:
    url = await serve(
        ending(sse(1, "queued"), sse(2, "error", detail="No face.", code="no_face")), Result(cuts=0).route
    )

    def program() -> list[str]:
        with blocking.FaceSwap(url) as client:
            client.download("my result.mp4", tmp_path / "out.mp4", sha256=SHA256)
            with pytest.raises(JobFailed, match=r"No face\."):
                client.wait("job")
            first = next(client.events("job"))
            return [first.type, *(event.type for event in client.events("job"))]

    assert await asyncio.to_thread(program) == ["queued", "queued", "error"]
    assert (tmp_path / "out.mp4").read_bytes() == RESULT
    assert not [thread for thread in threading.enumerate() if thread.name == "faceswap client"]


def test_the_blocking_client_has_all_that_the_other_has() -> None:
    public = {name for name in vars(FaceSwap) if not name.startswith("_")}
    assert public == {name for name in vars(blocking.FaceSwap) if not name.startswith("_")}


@pytest.mark.parametrize(("document", "schema"), [(JobStatus, "Status"), (Faces, "Faces"), (Face, "Face")])
def test_an_answer_has_the_fields_of_the_description(document: type, schema: str) -> None:
    described = SCHEMAS["Faces"]["properties"]["faces"]["items"] if schema == "Face" else SCHEMAS[schema]
    assert set(document.__annotations__) == set(described["properties"])


def test_an_editable_install_shows_its_types_to_type_checkers() -> None:
    """They follow a folder that a .pth file names, not a finder that a .pth file runs."""
    folders = Path(sysconfig.get_path("purelib")).glob("__editable__.faceswap-*.pth")
    assert [Path(file.read_text().strip(), "faceswap", "py.typed").is_file() for file in folders] == [True]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Result:
    """A `GET /download/my result.mp4` that breaks off after half of what is asked for, as often as it is told to."""

    def __init__(self, cuts: int, etags: tuple[str, ...] = ('"a"',)) -> None:
        self.cuts = cuts
        self.etags = etags
        self.starts: list[int] = []

    @property
    def route(self) -> web.RouteDef:
        return web.get("/download/my result.mp4", self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        etag = self.etags[min(len(self.starts), len(self.etags) - 1)]
        start = request.http_range.start or 0 if request.headers.get("If-Range") == etag else 0
        self.starts.append(start)
        body = RESULT[start:]
        response = web.StreamResponse(status=206 if start else 200, headers={"ETag": etag})
        response.content_length = len(body)
        await response.prepare(request)
        if len(self.starts) <= self.cuts:
            await response.write(body[: len(body) // 2])
            await asyncio.sleep(0)
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(body)
        return response


SHA256 = hashlib.sha256(RESULT).hexdigest()


async def test_a_cut_download_goes_on_where_it_broke_off(serve: Serve, tmp_path: Path) -> None:
    result, destination = Result(cuts=2), tmp_path / "out.mp4"
    async with FaceSwap(await serve(result.route)) as client:
        await client.download("my result.mp4", destination, sha256=SHA256)
    assert destination.read_bytes() == RESULT
    assert result.starts[0] == 0 < result.starts[1] < result.starts[2]
    assert names(tmp_path) == [destination.name]


async def test_a_download_starts_again_when_the_file_is_another_one_meanwhile(serve: Serve, tmp_path: Path) -> None:
    result, destination = Result(cuts=1, etags=('"a"', '"b"')), tmp_path / "out.mp4"
    async with FaceSwap(await serve(result.route)) as client:
        await client.download("my result.mp4", destination, sha256=SHA256)
    assert destination.read_bytes() == RESULT
    assert result.starts == [0, 0]


async def test_a_damaged_download_leaves_what_was_there(serve: Serve, tmp_path: Path) -> None:
    destination = tmp_path / "out.mp4"
    destination.write_bytes(b"before")
    async with FaceSwap(await serve(Result(cuts=0).route)) as client:
        with pytest.raises(FaceSwapError, match="damaged"):
            await client.download("my result.mp4", destination, sha256="0" * 64)
    assert destination.read_bytes() == b"before"
    assert names(tmp_path) == [destination.name]


async def test_a_download_replaces_the_file_that_a_link_points_to(serve: Serve, tmp_path: Path) -> None:
    target, link = tmp_path / "target.mp4", tmp_path / "link.mp4"
    link.symlink_to(target)
    async with FaceSwap(await serve(Result(cuts=0).route)) as client:
        await client.download("my result.mp4", link)
    assert link.is_symlink()
    assert target.read_bytes() == RESULT


async def test_a_download_never_replaces_what_is_no_file(serve: Serve, tmp_path: Path) -> None:
    async with FaceSwap(await serve(Result(cuts=0).route)) as client:
        with pytest.raises(FaceSwapError, match="not a file"):
            await client.download("my result.mp4", tmp_path)
