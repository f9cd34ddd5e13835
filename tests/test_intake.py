"""Requests in: over real sockets, whole and broken, with nothing left on disk after a refusal."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from waiting import WAIT_S

from faceswap.api.middleware import known_failures
from faceswap.config import Settings
from faceswap.errors import BadRequest, Problem, TooLarge, Unavailable
from faceswap.files import Files
from faceswap.intake import MAX_TEXT_BYTES, Submission, parse_object
from faceswap.intake import body as body_module
from faceswap.intake import files as inputs_module
from faceswap.intake.fetch import Fetcher
from faceswap.intake.files import InputFolder, Room, extension
from faceswap.intake.readers import RequestReader
from faceswap.options import Options
from faceswap.url_guard import UrlGuard

VIDEO = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 40
IMAGE = b"\x89PNG\r\n\x1a\n" + b"face" * 1000
BOUNDARY = "----boundary7MA4YWxk"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MIB = 1024 * 1024

Part = tuple[str, str | None, bytes]
VIDEO_PART: Part = ("video", "clip.mp4", VIDEO)
IMAGE_PART: Part = ("image", "face.png", IMAGE)


def form(*parts: Part, end: bool = True) -> bytes:
    """Build a multipart body; a part's file name of None makes it a plain field."""
    body = b""
    for name, filename, data in parts:
        file_part = "" if filename is None else f'; filename="{filename}"'
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file_part}\r\n\r\n'.encode() + data
        body += b"\r\n"
    return body + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


NOTHING_KEPT: Any = None
"""No uploads and no jobs to take inputs from."""


def check_options(options: Options) -> None:
    """Check options as where there are no workflows to choose from."""
    if options.workflow:
        raise BadRequest("There is no such workflow.", code="unknown_workflow")


class Door:
    """A server whose requests go through the intake; `outcome` is what became of the next one."""

    def __init__(self, settings: Settings) -> None:
        files = Files(settings.data_dir)
        self.fetcher = Fetcher(UrlGuard(settings.url_allow))
        room = Room(files, settings.min_free_mb * MIB)
        self.reader = RequestReader(settings, files, room, self.fetcher, NOTHING_KEPT, check_options)
        self.folder = files.inputs("job-1")
        self.outcomes: asyncio.Queue[Submission | Exception] = asyncio.Queue()
        self.tasks: list[asyncio.Task[Any]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def outcome(self) -> Submission | Exception:
        return await asyncio.wait_for(self.outcomes.get(), WAIT_S)

    async def submission(self) -> Submission:
        outcome = await self.outcome()
        assert isinstance(outcome, Submission), outcome
        return outcome

    async def refusal(self) -> Problem:
        """Return the problem of the next request, which must have left nothing on disk."""
        outcome = await self.outcome()
        assert isinstance(outcome, Problem), outcome
        assert not list((self.folder.parent).glob("*"))
        assert str(self.folder.parent) not in outcome.detail
        return outcome

    async def post(self, **request: Any) -> None:
        """Send a request whose answer does not matter: a server may refuse before it has read everything."""
        async with aiohttp.ClientSession() as session:
            with suppress(aiohttp.ClientError):
                async with session.post(f"{self.url}/", **request) as response:
                    await response.read()

    async def post_form(self, *parts: Part, headers: dict[str, str] | None = None, chunked: bool = False) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield form(*parts)

        data = pieces() if chunked else form(*parts)  # a generator goes out without its length
        await self.post(data=data, headers={"Content-Type": FORM_TYPE} | (headers or {}))

    async def raw(self, length: int) -> asyncio.StreamWriter:
        """Open a connection and send the head of a multipart request of `length` bytes."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM_TYPE}\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode())
        return writer

    async def on_post(self, request: web.Request) -> web.StreamResponse:
        return await self._note(self.reader.from_request(request, None, "job-1"), web.Response())

    async def on_websocket(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        first = parse_object(await ws.receive_str())
        await self._note(self.reader.from_websocket(first, ws, None, "job-1"), ws)
        await ws.close()
        return ws

    async def _note(self, reading: Any, response: web.StreamResponse) -> web.StreamResponse:
        task = asyncio.ensure_future(reading)
        self.tasks.append(task)
        try:
            with known_failures():
                await self.outcomes.put(await task)
        except (Problem, asyncio.CancelledError, OSError) as error:
            await self.outcomes.put(error)  # type: ignore[arg-type]
        return response


async def serve_file(request: web.Request) -> web.Response:
    return web.Response(body={"clip": VIDEO, "face": IMAGE, "nothing": b""}[request.match_info["name"]])


@pytest.fixture
async def open_door(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    runners = []

    async def make(**changes: Any) -> Door:
        settings = Settings(data_dir=tmp_path, min_free_mb=1, url_allow=(ip_network("127.0.0.0/8"),))
        door = Door(replace(settings, **changes))
        app = web.Application()
        app.add_routes([web.post("/", door.on_post), web.get("/ws", door.on_websocket)])
        app.router.add_get("/files/{name}", serve_file)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        door.port = runner.addresses[0][1]
        runners.append((runner, door))
        return door

    yield make
    for runner, door in runners:
        await runner.cleanup()
        await door.fetcher.close()


@pytest.fixture
async def door(open_door: Callable[..., Any]) -> Door:
    return await open_door()  # type: ignore[no-any-return]


def check_files(door: Door, submission: Submission) -> None:
    video, image = door.folder / submission.video_file, door.folder / submission.images[0].file
    assert set(door.folder.iterdir()) == {video, image}
    assert video.read_bytes() == VIDEO
    assert image.read_bytes() == IMAGE
    assert submission.video_sha256 == hashlib.sha256(VIDEO).hexdigest()
    assert submission.images[0].sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert submission.video_bytes == len(VIDEO)


async def appears(folder: Path, name: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not folder.is_dir() or name not in os.listdir(folder):  # noqa: PTH208  # a few files
            await asyncio.sleep(0.01)


# What is taken in


@pytest.mark.parametrize("turn", range(4))
async def test_parts_may_come_in_any_order(door: Door, turn: int) -> None:
    parts = [VIDEO_PART, ("options", None, b'{"crf": 18}'), IMAGE_PART, ("output_name", None, b"my film")]
    await door.post_form(*parts[turn:], *parts[:turn])
    submission = await door.submission()
    check_files(door, submission)
    assert submission.options.crf == 18
    assert submission.output_name == "my film"


async def test_a_form_with_files_only_has_defaults(door: Door) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART)
    submission = await door.submission()
    assert submission.output_name is None
    assert (submission.id_only, submission.respond_async) == (False, False)
    assert submission.options.to_dict() == {"crf": 20, "priority": 0}


async def test_only_the_owner_can_read_the_files(door: Door) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART)
    await door.submission()
    assert stat.S_IMODE(door.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in door.folder.iterdir()} == {0o600}


async def test_a_form_may_arrive_byte_by_byte(door: Door) -> None:
    small = form(("video", "v", VIDEO[:300]), ("image", "i", IMAGE[:300]))
    writer = await door.raw(len(small))
    for byte in small:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    await door.submission()
    writer.close()
    assert (door.folder / "video.mp4").read_bytes() == VIDEO[:300]
    assert (door.folder / "image.png").read_bytes() == IMAGE[:300]


async def test_the_line_break_after_the_last_boundary_may_come_late(door: Door) -> None:
    body = form(VIDEO_PART, IMAGE_PART)
    writer = await door.raw(len(body))
    writer.write(body[:-2])
    await appears(door.folder, "image.png")
    writer.write(body[-2:])
    check_files(door, await door.submission())
    writer.close()


async def test_bytes_that_look_like_a_boundary_stay_in_the_file(door: Door) -> None:
    tricks = f"\r\n--{BOUNDARY[:-1]}\r\n--\r\r\n-{BOUNDARY}\r\n--\r\n".encode() * 1000
    await door.post_form(("video", "v.mp4", tricks), IMAGE_PART)
    submission = await door.submission()
    assert submission.video_sha256 == hashlib.sha256(tricks).hexdigest()


async def test_a_body_of_unknown_length_is_taken(door: Door) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        body = form(VIDEO_PART, IMAGE_PART)
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    await door.post(data=pieces(), headers={"Content-Type": FORM_TYPE})
    check_files(door, await door.submission())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\\\x.mp4", "a\x00b", "x" * 3000, "%2e%2e%2fx"])
async def test_the_client_names_no_file(door: Door, name: str) -> None:
    await door.post_form(("video", name, VIDEO), IMAGE_PART)
    submission = await door.submission()
    check_files(door, submission)
    assert submission.video_file == "video.mp4"


async def test_a_part_without_a_file_name_is_a_file_all_the_same(door: Door) -> None:
    await door.post_form(("video", None, VIDEO), ("image", "", IMAGE))
    check_files(door, await door.submission())


async def test_what_a_browser_sends_for_inputs_left_blank_counts_as_not_given(door: Door) -> None:
    url = f"{door.url}/files/clip".encode()
    blank = [(name, None, b"") for name in ("image_url", "output_name", "options", "webhook_url")]
    await door.post_form(("video", "", b""), ("video_url", None, url), IMAGE_PART, *blank)
    check_files(door, await door.submission())


@pytest.mark.parametrize("preference", ["respond-async", "wait=5, Respond-Async", "respond-async; x=1"])
async def test_prefer_respond_async_is_understood(door: Door, preference: str) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART, headers={"Prefer": preference})
    assert (await door.submission()).respond_async


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("1", True),
        ("YES", True),
        ("On", True),
        ("false", False),
        ("0", False),
        ("no", False),
        ("oFF", False),
    ],
)
async def test_return_prompt_id_only_is_understood(door: Door, text: str, value: bool) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART, ("return_prompt_id_only", None, text.encode()))
    assert (await door.submission()).id_only is value


async def test_json_with_urls_is_taken(door: Door) -> None:
    await door.post(
        json={
            "video_url": f"{door.url}/files/clip",
            "image_url": f"{door.url}/files/face",
            "output_name": None,
            "return_prompt_id_only": True,
            "options": {"face_index": "0,1"},
        }
    )
    submission = await door.submission()
    check_files(door, submission)
    assert submission.id_only
    assert submission.options.face_index == "0,1"


async def test_the_digest_is_that_of_what_is_asked_for(door: Door) -> None:
    async def digest(*parts: Part) -> str:
        await door.post_form(*parts)
        submission = await door.submission()
        for path in door.folder.iterdir():
            path.unlink()
        door.folder.rmdir()
        return submission.digest

    first = await digest(VIDEO_PART, IMAGE_PART)
    assert first == await digest(IMAGE_PART, ("return_prompt_id_only", None, b"1"), VIDEO_PART)
    assert first == await digest(("options", None, b"{}"), ("video", "other.mov", VIDEO), IMAGE_PART)
    others = [
        await digest(("video", "v", VIDEO + b"x"), IMAGE_PART),
        await digest(VIDEO_PART, ("image", "i", IMAGE + b"x")),
        await digest(VIDEO_PART, IMAGE_PART, ("options", None, b'{"crf": 21}')),
        await digest(VIDEO_PART, IMAGE_PART, ("output_name", None, b"x")),
        await digest(("video_url", None, f"{door.url}/files/clip".encode()), IMAGE_PART),
    ]
    assert len({first, *others}) == 6


@pytest.mark.parametrize(
    ("kind", "head", "expected"),
    [
        ("video", b"\0\0\0\x18ftypisom", ".mp4"),
        ("video", b"\0\0\0\x14ftypqt  ", ".mov"),
        ("video", b"\x1a\x45\xdf\xa3....webm", ".webm"),
        ("video", b"\x1a\x45\xdf\xa3....matroska", ".mkv"),
        ("video", b"RIFF....AVI LIST", ".avi"),
        ("video", b"GIF89a", ".gif"),
        ("video", b"\x89PNG\r\n", ".png"),
        ("video", b"\0\0\0\x18ftypheic", ".heic"),
        ("video", b"", ".mp4"),
        ("image", b"\xff\xd8\xff\xe0", ".jpg"),
        ("image", b"RIFF....WEBPVP8 ", ".webp"),
        ("image", b"BM....", ".bmp"),
        ("image", b"\0\0\0\x18ftypisom", ".png"),
    ],
)
def test_a_file_is_named_after_its_bytes(kind: str, head: bytes, expected: str) -> None:
    assert extension(kind, head) == expected


# What is refused, with nothing left on disk

BAD_FORMS: list[tuple[str, int, list[Part]]] = [
    ("missing_video", 400, [IMAGE_PART]),
    ("missing_image", 400, [VIDEO_PART]),
    ("missing_video", 400, []),
    ("missing_video", 400, [("video", "", b""), IMAGE_PART]),
    ("empty_video", 400, [("video", "clip.mp4", b""), IMAGE_PART]),
    ("empty_image", 400, [VIDEO_PART, ("image", "face.png", b"")]),
    ("duplicate_video", 400, [VIDEO_PART, ("video_url", None, b"http://example.com/"), IMAGE_PART]),
    ("duplicate_video", 400, [("video_url", None, b"http://example.com/"), VIDEO_PART, IMAGE_PART]),
    ("duplicate_image", 400, [VIDEO_PART, IMAGE_PART, ("image_url", None, b"http://example.com/")]),
    ("duplicate_field", 400, [VIDEO_PART, VIDEO_PART, IMAGE_PART]),
    ("duplicate_field", 400, [("output_name", None, b"a"), ("output_name", None, b"a"), VIDEO_PART, IMAGE_PART]),
    ("unknown_field", 400, [VIDEO_PART, IMAGE_PART, ("colour", None, b"red")]),
    ("unknown_field", 400, [VIDEO_PART, IMAGE_PART, ("", None, b"red")]),
    ("unknown_option", 400, [VIDEO_PART, IMAGE_PART, ("options", None, b'{"colour": 1}')]),
    ("invalid_option", 400, [VIDEO_PART, IMAGE_PART, ("options", None, b'{"crf": 99}')]),
    ("malformed_json", 400, [VIDEO_PART, IMAGE_PART, ("options", None, b"{")]),
    ("malformed_json", 400, [VIDEO_PART, IMAGE_PART, ("options", None, b"[1]")]),
    ("invalid_output_name", 400, [VIDEO_PART, IMAGE_PART, ("output_name", None, b"../x")]),
    ("invalid_output_name", 400, [VIDEO_PART, IMAGE_PART, ("output_name", None, b"x" * 300)]),
    ("invalid_output_name", 400, [VIDEO_PART, IMAGE_PART, ("output_name", None, b"a\nb")]),
    ("invalid_flag", 400, [VIDEO_PART, IMAGE_PART, ("return_prompt_id_only", None, b"maybe")]),
    ("invalid_url", 400, [("video_url", None, b"http://xn--/"), IMAGE_PART]),
    ("invalid_url", 400, [VIDEO_PART, IMAGE_PART, ("webhook_url", None, b"https://user@example.com/hook")]),
    ("invalid_url", 400, [VIDEO_PART, IMAGE_PART, ("result_put_url", None, b"s3://bucket/key")]),
    ("url_not_allowed", 422, [VIDEO_PART, IMAGE_PART, ("webhook_url", None, b"http://169.254.169.254/hook")]),
    ("url_not_allowed", 422, [VIDEO_PART, IMAGE_PART, ("result_put_url", None, b"http://[::ffff:10.0.0.1]/")]),
    ("unknown_workflow", 400, [VIDEO_PART, IMAGE_PART, ("options", None, b'{"workflow": "none"}')]),
    ("invalid_url", 400, [("video_url", None, b"file:///etc/passwd"), IMAGE_PART]),
    ("url_not_allowed", 422, [("video_url", None, b"http://10.0.0.1/"), IMAGE_PART]),
    ("malformed_field", 400, [VIDEO_PART, IMAGE_PART, ("output_name", None, b"\xff\xfe")]),
    ("field_too_large", 413, [VIDEO_PART, IMAGE_PART, ("options", None, b" " * (65 * 1024))]),
]


@pytest.mark.parametrize(("code", "status", "parts"), BAD_FORMS)
async def test_a_bad_form_is_refused(door: Door, code: str, status: int, parts: list[Part]) -> None:
    await door.post_form(*parts)
    problem = await door.refusal()
    assert (problem.status, problem.code) == (status, code)


async def test_a_url_with_an_empty_answer_is_refused(door: Door) -> None:
    await door.post_form(("video_url", None, f"{door.url}/files/nothing".encode()), IMAGE_PART)
    assert (await door.refusal()).code == "empty_video"


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("invalid_option", ("options", None, b'{"crf": 99}')),
        ("unknown_workflow", ("options", None, b'{"workflow": "none"}')),
        ("invalid_url", ("webhook_url", None, b"https://example.com:25/hook")),
    ],
)
async def test_a_wrong_field_is_refused_before_the_upload_has_ended(door: Door, code: str, part: Part) -> None:
    start = form(part, ("video", "v", VIDEO), end=False)
    writer = await door.raw(1000 * MIB)
    writer.write(start)
    assert (await door.refusal()).code == code
    writer.close()


BAD_JSON = [
    ("malformed_json", b"{"),
    ("malformed_json", b""),
    ("malformed_json", b"[]"),
    ("malformed_json", b'"text"'),
    ("malformed_json", b"\xff"),
    ("malformed_json", b"[" * 50_000),
    ("malformed_json", b'{"output_name": ' + b"9" * 5000 + b"}"),
    ("duplicate_field", b'{"output_name": "a", "output_name": "b"}'),
    ("unknown_field", b'{"colour": "red"}'),
    ("invalid_output_name", b'{"output_name": 7}'),
    ("invalid_output_name", b'{"output_name": "\\ud800"}'),
    ("invalid_url", b'{"video_url": 7}'),
    ("invalid_url", b'{"video_url": "http://\\ud800/"}'),
    ("invalid_video", b'{"video": "clip.mp4"}'),
    ("invalid_option", b'{"options": [1]}'),
    ("invalid_option", b'{"options": {"crf": NaN}}'),
    ("missing_video", b"{}"),
    ("too_large", b'{"output_name": "' + b"x" * 70_000 + b'"}'),
]


@pytest.mark.parametrize(("code", "body"), BAD_JSON)
async def test_bad_json_is_refused(door: Door, code: str, body: bytes) -> None:
    await door.post(data=body, headers={"Content-Type": "application/json"})
    assert (await door.refusal()).code == code


@pytest.mark.parametrize("text", ["{}" + " " * MAX_TEXT_BYTES, b"{}" + b" " * MAX_TEXT_BYTES])
def test_json_is_not_read_where_it_is_long(text: str | bytes) -> None:
    with pytest.raises(TooLarge):
        parse_object(text)
    assert parse_object(text[:MAX_TEXT_BYTES]) == {}


def test_a_whole_number_may_be_written_with_a_fraction() -> None:
    found = parse_object('{"crf": 2e1, "priority": -5.0, "mapping": [{"face": 1.0}], "start": 0.5}')
    assert found == {"crf": 20, "priority": -5, "mapping": [{"face": 1}], "start": 0.5}
    assert Options.parse(found).crf == 20
    assert not math.isfinite(parse_object('{"start": 1e999}')["start"])


BAD_MULTIPART = [
    ("malformed_multipart", b"no boundary at all, but text that is long enough to tell\r\n\r\n" + b"--no" * 10),
    ("malformed_multipart", f"--{BOUNDARY}xx\r\n".encode() + b"x" * 100),
    ("malformed_multipart", f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="video"\n\n'.encode() + VIDEO),
    ("malformed_multipart", f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode()),
    ("malformed_multipart", f"--{BOUNDARY}\r\nno colon\r\n\r\nx".encode()),
    ("malformed_multipart", f"--{BOUNDARY}\r\nX: ".encode() + b"y" * 10_000),
    ("malformed_multipart", f"--{BOUNDARY}\r\n".encode() + b"X: y\r\n" * 100),
    ("malformed_multipart", f"--{BOUNDARY}\r\nX: \xff\r\n".encode("latin-1")),
    ("incomplete_body", b""),
    ("incomplete_body", form(VIDEO_PART, IMAGE_PART, end=False)),
]


@pytest.mark.parametrize(("code", "body"), BAD_MULTIPART)
async def test_broken_multipart_is_refused(door: Door, code: str, body: bytes) -> None:
    await door.post(data=body, headers={"Content-Type": FORM_TYPE})
    problem = await door.refusal()
    assert (problem.status, problem.code) in [(400, code), (400, "incomplete_body")]
    assert problem.code == code or body.startswith(b"no boundary")


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="a\udcffb"'],
)
async def test_a_boundary_that_is_missing_or_unusable_is_refused(door: Door, content_type: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: 4\r\n\r\nbody"
    writer.write(head.encode("utf-8", "surrogateescape"))
    assert (await door.refusal()).code == "malformed_multipart"
    writer.close()


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x"]
)
async def test_another_content_type_is_refused(door: Door, content_type: str) -> None:
    await door.post(data=b"x", headers={"Content-Type": content_type})
    assert ((await door.refusal()).status) == 415


async def test_a_compressed_request_is_refused(door: Door) -> None:
    async with aiohttp.ClientSession() as session:
        data = form(VIDEO_PART, IMAGE_PART)
        await session.post(f"{door.url}/", data=data, headers={"Content-Type": FORM_TYPE}, compress="gzip")
    assert (await door.refusal()).status == 415


BODY = form(VIDEO_PART, IMAGE_PART)


@pytest.mark.parametrize("sent", [0, 10, 100, 5000, len(VIDEO) + 200, len(BODY) - 1])
async def test_a_body_that_is_cut_off_leaves_nothing(door: Door, sent: int) -> None:
    writer = await door.raw(len(BODY))
    writer.write(BODY[:sent])
    await writer.drain()
    writer.close()
    problem = await door.refusal()
    assert (problem.status, problem.code) == (400, "incomplete_body")


async def test_a_broken_chunk_leaves_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "IDLE_S", 0.1)  # aiohttp does not tell the handler; it reads on as in silence
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode() + b"1f4\r\n" + BODY[:500] + b"\r\n")
    await appears(door.folder, "video.part")
    writer.write(b"not hex\r\n")
    assert (await door.refusal()).code == "upload_stalled"
    writer.close()


async def test_a_cancelled_request_leaves_nothing(door: Door) -> None:
    writer = await door.raw(len(BODY))
    writer.write(BODY[:5000])
    await appears(door.folder, "video.part")
    door.tasks[0].cancel()
    assert isinstance(await door.outcome(), asyncio.CancelledError)
    assert not list(door.folder.parent.glob("*"))
    writer.close()


async def test_a_client_that_stalls_is_given_up(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "IDLE_S", 0.1)
    writer = await door.raw(len(BODY))
    writer.write(BODY[:5000])
    problem = await door.refusal()
    assert (problem.status, problem.code) == (408, "upload_stalled")
    writer.close()


async def test_a_client_that_drips_is_given_up(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "GRACE_S", 0.2)
    writer = await door.raw(len(BODY))
    refusal = asyncio.ensure_future(door.refusal())
    for byte in BODY:
        if refusal.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)
    assert (await refusal).code == "upload_stalled"
    writer.close()


async def test_a_request_that_announces_too_much_is_refused_at_once(open_door: Callable[..., Any]) -> None:
    door = await open_door(max_upload_mb=1)
    writer = await door.raw(20 * MIB)
    problem = await door.refusal()
    assert (problem.status, problem.code) == (413, "too_large")
    writer.close()


@pytest.mark.parametrize("kind", ["video", "image"])
async def test_a_file_that_is_too_large_is_refused_while_it_arrives(open_door: Callable[..., Any], kind: str) -> None:
    door = await open_door(max_upload_mb=1)

    async def endless() -> AsyncIterator[bytes]:
        yield form((kind, "x", b"x" * MIB), end=False)[:-2]
        while door.outcomes.empty():
            yield b"x" * 1000

    await door.post(data=endless(), headers={"Content-Type": FORM_TYPE})
    problem = await door.refusal()
    assert (problem.status, problem.code) == (413, "too_large")
    assert f"'{kind}'" in problem.detail


@pytest.mark.parametrize("start", [b"junk\r\n", form(VIDEO_PART, IMAGE_PART)])
async def test_junk_around_the_form_is_bounded(open_door: Callable[..., Any], start: bytes) -> None:
    door = await open_door(max_upload_mb=1)

    async def endless() -> AsyncIterator[bytes]:
        yield start
        while door.outcomes.empty():
            yield b"junk" * 10_000

    await door.post(data=endless(), headers={"Content-Type": FORM_TYPE})
    assert (await door.refusal()).code == "too_large"


async def test_a_file_from_a_url_counts_against_the_same_limit(open_door: Callable[..., Any]) -> None:
    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * (MIB + 1))

    app = web.Application()
    app.router.add_get("/", large)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    door = await open_door(max_upload_mb=1)
    await door.post(
        json={"video_url": f"http://127.0.0.1:{runner.addresses[0][1]}/", "image_url": f"{door.url}/files/face"}
    )
    assert (await door.refusal()).status == 413
    await runner.cleanup()


async def test_too_little_room_on_the_disk_is_told(open_door: Callable[..., Any]) -> None:
    door = await open_door(min_free_mb=1_000_000_000)
    await door.post_form(VIDEO_PART, IMAGE_PART)
    problem = await door.refusal()
    assert (problem.status, problem.code) == (503, "disk_low")
    assert problem.retry_after


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Provide a disk whose free space a test sets; one MiB must stay free."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    return disk


async def test_what_is_announced_has_room_before_it_comes(door: Door, disk: SimpleNamespace) -> None:
    disk.free = MIB + 10
    await door.post_form(VIDEO_PART, IMAGE_PART)
    assert (await door.refusal()).code == "disk_low"


async def test_an_upload_ends_when_others_have_taken_its_room(
    door: Door, disk: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module, "ROOM_CHECK_BYTES", 1000)
    disk.free = 10 * MIB
    writer = await door.raw(len(BODY))
    writer.write(BODY[:500])
    await appears(door.folder, "video.part")
    disk.free = MIB
    writer.write(BODY[500:])
    assert (await door.refusal()).code == "disk_low"
    writer.close()


async def test_an_upload_of_unknown_size_needs_room_for_the_largest(
    open_door: Callable[..., Any], disk: SimpleNamespace
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield BODY

    door = await open_door(max_upload_mb=1)  # for the video and each of eight pictures
    for disk.free, code in ((10 * MIB, "disk_low"), (11 * MIB, None)):
        await door.post(data=body(), headers={"Content-Type": FORM_TYPE})
        if code is None:
            check_files(door, await door.submission())
        else:
            assert (await door.refusal()).code == code


async def test_room_is_reserved_until_the_bytes_have_come(tmp_path: Path, disk: SimpleNamespace) -> None:
    room = Room(Files(tmp_path), 0)
    one, two = (InputFolder(Files(tmp_path), "job-1", room) for _ in range(2))
    disk.free = 100
    await one.expect(60)
    with pytest.raises(Unavailable):
        await two.expect(41)
    room.forget(two)
    one.arrived(50)
    disk.free = 50
    await two.expect(40)
    with pytest.raises(Unavailable):
        await two.expect(41)
    room.forget(one)
    await two.expect(50)


async def test_an_upload_is_marked_as_such_until_it_is_refused(door: Door) -> None:
    writer = await door.raw(len(BODY))
    writer.write(BODY[:500])
    await appears(door.folder.parent, f"{door.folder.name}.upload")
    writer.close()
    await door.refusal()
    assert not (door.folder.parent / "job-1.upload").exists()


async def test_an_upload_is_marked_until_its_job_is_committed(door: Door) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART)
    await door.submission()
    assert (door.folder.parent / "job-1.upload").exists()


async def test_room_is_given_back_when_an_upload_ends(door: Door, disk: SimpleNamespace) -> None:
    disk.free = MIB + len(BODY) * 3 // 2
    writer = await door.raw(len(BODY))
    writer.write(BODY[:100])
    writer.close()
    assert (await door.refusal()).code == "incomplete_body"
    await door.post_form(VIDEO_PART, IMAGE_PART)
    await door.submission()


async def test_a_disk_that_fills_up_is_told(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    await door.post_form(VIDEO_PART, IMAGE_PART)
    problem = await door.refusal()
    assert (problem.status, problem.code) == (503, "disk_full")
    assert problem.retry_after


# Memory


def _peak_rss() -> int:
    """Return the process's greatest resident memory since `_reset_peak_rss`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _reset_peak_rss() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def test_memory_does_not_grow_with_an_upload(door: Door) -> None:
    chunk = os.urandom(256 * 1024)

    async def upload(mebibytes: int) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield form(("video", "v", b"x"), end=False)[:-2]
            for _ in range(4 * mebibytes):
                yield chunk
            yield b"\r\n" + form(IMAGE_PART)

        await door.post(data=pieces(), headers={"Content-Type": FORM_TYPE})
        submission = await door.submission()
        assert submission.video_bytes == mebibytes * MIB + 1
        for path in door.folder.iterdir():
            path.unlink()
        door.folder.rmdir()

    await upload(8)
    _reset_peak_rss()
    before = _peak_rss()
    await upload(256)
    assert _peak_rss() - before < 16 * MIB


# WebSocket


async def upload_frames(door: Door, first: dict[str, Any], frames: list[bytes]) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{door.url}/ws") as ws:
        await ws.send_str(json.dumps(first))
        with suppress(ConnectionError):  # a refused client is cut off
            for frame in frames:
                await ws.send_bytes(frame)
        await ws.receive()


def announced(video: int = len(VIDEO), image: int = len(IMAGE)) -> dict[str, Any]:
    return {"video": {"filename": "../v.mp4", "size": video}, "image": {"filename": "i.png", "size": image}}


@pytest.mark.parametrize("size", [1, 7, 1000, len(VIDEO), len(VIDEO) + 1, 10**6])
async def test_frames_of_any_size_are_taken(door: Door, size: int) -> None:
    video, image = VIDEO[: max(20, 300 * size)], IMAGE[: max(20, 300 * size)]
    body = video + image
    frames = [body[start : start + size] for start in range(0, len(body), size)]
    await upload_frames(door, announced(len(video), len(image)) | {"options": {"crf": 3}}, frames)
    submission = await door.submission()
    assert (door.folder / submission.video_file).read_bytes() == video
    assert (door.folder / submission.images[0].file).read_bytes() == image
    assert submission.options.crf == 3


async def test_an_empty_frame_is_no_end(door: Door) -> None:
    await upload_frames(door, announced(), [b"", VIDEO, b"", IMAGE])
    check_files(door, await door.submission())


async def test_urls_over_a_websocket_are_taken(door: Door) -> None:
    await upload_frames(door, {"video_url": f"{door.url}/files/clip", "image_url": f"{door.url}/files/face"}, [])
    check_files(door, await door.submission())


async def test_a_file_and_a_url_over_a_websocket_are_taken(door: Door) -> None:
    first = {"video_url": f"{door.url}/files/clip", "image": {"size": len(IMAGE)}}
    await upload_frames(door, first, [IMAGE])
    check_files(door, await door.submission())


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("missing_image", {"video": {"size": 10}}),
        ("missing_video", {}),
        ("duplicate_video", announced() | {"video_url": "http://example.com/"}),
        ("unknown_field", announced() | {"colour": "red"}),
        ("invalid_video", announced() | {"video": {"size": -1}}),
        ("invalid_video", announced() | {"video": {"size": True}}),
        ("invalid_video", announced() | {"video": {"size": "7"}}),
        ("invalid_image", announced() | {"image": "face.png"}),
        ("empty_video", announced(video=0)),
        ("too_large", announced(video=2**60)),
        ("too_large", announced(image=65 * MIB)),
        ("invalid_output_name", announced() | {"output_name": "../x"}),
    ],
)
async def test_a_bad_first_frame_is_refused_before_any_bytes(door: Door, code: str, first: dict[str, Any]) -> None:
    await upload_frames(door, first, [])
    assert (await door.refusal()).code == code


async def test_more_bytes_than_announced_are_refused(door: Door) -> None:
    await upload_frames(door, announced(), [VIDEO + IMAGE + b"x"])
    assert (await door.refusal()).code == "too_large"


async def test_a_text_frame_in_an_upload_is_refused(door: Door) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{door.url}/ws") as ws:
        await ws.send_str(json.dumps(announced()))
        await ws.send_str("{}")
        assert (await door.refusal()).code == "unexpected_message"


async def test_a_socket_closed_in_an_upload_leaves_nothing(door: Door) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{door.url}/ws") as ws:
        await ws.send_str(json.dumps(announced()))
        await ws.send_bytes(VIDEO[:1000])
        await ws.close()
    assert (await door.refusal()).code == "incomplete_body"


async def test_a_socket_that_stalls_in_an_upload_is_given_up(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "IDLE_S", 0.1)
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{door.url}/ws") as ws:
        await ws.send_str(json.dumps(announced()))
        assert (await door.refusal()).code == "upload_stalled"


async def test_a_frame_above_the_sockets_limit_is_too_large(door: Door) -> None:
    await upload_frames(door, announced(video=10 * MIB), [b"x" * (5 * MIB)])
    assert (await door.refusal()).code == "frame_too_large"


# Consent


async def test_consent_is_kept_as_it_was_given(door: Door) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART, ("consent", None, " form 12, signed: Zoë ".encode()))
    assert (await door.submission()).consent == "form 12, signed: Zoë"


@pytest.mark.parametrize("consent", ["\ud800", "a\0b", "a\nb", "form 12\n", "\x85", 1, [], True])
async def test_a_consent_can_be_stored_and_read(door: Door, consent: object) -> None:
    await door.post(data=json.dumps({"consent": consent}), headers={"Content-Type": "application/json"})
    assert (await door.refusal()).code == "invalid_consent"


@pytest.mark.parametrize("consent", [b"x" * 1001, b"x" * 65_000 + b"\n", b" " * 65_000 + b"\n", b"  "])
async def test_a_consent_is_a_text_of_some_length(door: Door, consent: bytes) -> None:
    await door.post_form(VIDEO_PART, IMAGE_PART, ("consent", None, consent))
    assert (await door.refusal()).code == "invalid_consent"


async def test_consent_is_required_where_the_operator_says_so(open_door: Callable[..., Any]) -> None:
    door = await open_door(require_consent=True)
    await door.post_form(VIDEO_PART, IMAGE_PART, ("consent", None, b""))
    refusal = await door.refusal()
    assert (refusal.status, refusal.code) == (400, "consent_required")
    await door.post(json={"video_url": f"{door.url}/files/clip", "image_url": f"{door.url}/files/face"})
    assert (await door.refusal()).code == "consent_required"
    await door.post_form(VIDEO_PART, IMAGE_PART, ("consent", None, b"form 12"))
    assert (await door.submission()).consent == "form 12"
