"""The client against a real HTTP server that plays the contract, with the faults a network has."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from faceswap.client import MAX_EVENT_CHARS, EventStreamParser, FaceSwap, FaceSwapError, ServerSentEvent

Serve = Callable[..., Awaitable[str]]
RESULT = bytes(range(256)) * 4096


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


async def test_no_server_at_all_is_an_error_without_status(unused_tcp_port: int) -> None:
    async with FaceSwap(f"http://127.0.0.1:{unused_tcp_port}") as client:
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
