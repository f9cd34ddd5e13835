"""Files as answers: short ones in one piece, long ones in turns, each part as it was asked for."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer
from waiting import WAIT_S, until

from faceswap.api import sending
from faceswap.api.sending import SHORT_BYTES, send_file

CONTENT = os.urandom(3 * SHORT_BYTES)
Client = TestClient[web.Request, web.Application]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sending, "TURN_BYTES", SHORT_BYTES // 3)
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
async def client(path: Path) -> AsyncIterator[Client]:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        return await send_file(request, path, {"Content-Type": "video/mp4", "X-Port": str(port)})

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, len(CONTENT) - 1),
        (1, SHORT_BYTES),
        (1, SHORT_BYTES + 1),
        (len(CONTENT) - SHORT_BYTES - 1, len(CONTENT) - 1),
        (len(CONTENT) - 1, len(CONTENT) - 1),
    ],
)
async def test_a_part_of_any_length_is_that_part(client: Client, first: int, last: int) -> None:
    async with client.get("/", headers={"Range": f"bytes={first}-{last}"}) as answer:
        assert (answer.status, await answer.read()) == (206, CONTENT[first : last + 1])
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
        assert answer.headers["Content-Length"] == str(last + 1 - first)
        assert answer.headers["Content-Type"] == "video/mp4"


async def test_answers_follow_one_another_on_a_connection(client: Client) -> None:
    ports = set()
    for asked, sent in (
        ({}, CONTENT),
        ({"Range": "bytes=0-9"}, CONTENT[:10]),
        ({"Range": "bytes=-70000"}, CONTENT[-70000:]),
    ):
        for method in ("GET", "HEAD"):
            async with client.request(method, "/", headers=asked) as answer:
                ports.add(answer.headers["X-Port"])
                assert answer.headers["Content-Length"] == str(len(sent))
                assert await answer.read() == (sent if method == "GET" else b"")
    assert len(ports) == 1


async def test_the_conditions_of_a_request_decide_between_whole_part_and_nothing(client: Client) -> None:
    async with client.get("/") as answer:
        etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
    old = "Sat, 01 Jan 2000 00:00:00 GMT"
    conditions: list[tuple[dict[str, str], int]] = [
        ({"If-Match": etag}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Unmodified-Since": modified}, 200),
        ({"If-Unmodified-Since": old}, 412),
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": old}, 200),
        ({"Range": "bytes=0-9", "If-Range": etag}, 206),
        ({"Range": "bytes=0-9", "If-Range": modified}, 206),
        ({"Range": "bytes=0-9", "If-Range": '"other"'}, 200),
        ({"Range": "bytes=0-9", "If-Range": old}, 200),
        ({"Range": f"bytes={len(CONTENT)}-"}, 416),
        ({"Range": "bytes=9-0"}, 416),
        ({"Range": "words=0-9"}, 416),
    ]
    for headers, status in conditions:
        async with client.get("/", headers=headers) as answer:
            assert (headers, answer.status) == (headers, status)
            assert len(await answer.read()) == {200: len(CONTENT), 206: 10}.get(status, 0)


async def test_an_empty_file_is_an_empty_answer(client: Client, path: Path) -> None:
    path.write_bytes(b"")
    async with client.get("/") as answer:
        assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, "0", b"")


async def test_a_file_that_becomes_shorter_while_it_is_sent_breaks_the_connection(
    client: Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    sendfile = loop.sendfile

    async def shorten_then_send(*arguments: Any) -> int:
        os.truncate(path, SHORT_BYTES // 3)
        return await sendfile(*arguments)

    monkeypatch.setattr(loop, "sendfile", shorten_then_send)
    with pytest.raises(ClientPayloadError):
        async with client.get("/") as answer:
            await answer.read()


async def test_a_file_is_closed_when_its_reader_is_gone(client: Client, path: Path) -> None:
    path.write_bytes(bytes(64 * 2**20))
    async with client.get("/") as answer:
        await answer.content.readexactly(1000)
        assert _is_open(path)
        answer.close()
    await until(lambda: not _is_open(path))


def _is_open(path: Path) -> bool:
    return str(path) in {file.path for file in psutil.Process().open_files()}


@pytest.mark.parametrize("step", ["open", "close"])
async def test_a_file_is_closed_though_its_request_is_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    loop, go_on, at_step = asyncio.get_running_loop(), threading.Event(), threading.Event()
    files: list[FileIO] = []  # so that none is closed because nobody has it any more

    class Noted(FileIO):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            files.append(self)
            if step == "open":
                at_step.set()
                go_on.wait(WAIT_S)

    async def send_nothing(*_: object) -> None:
        if step == "close":
            blocking.append(loop.run_in_executor(None, go_on.wait, WAIT_S))
            loop.call_soon(loop.call_soon, at_step.set)  # when the file waits for its thread

    async def handler(request: web.Request) -> web.StreamResponse:
        tasks.append(asyncio.ensure_future(send_file(request, path, {})))
        return await tasks[0]

    monkeypatch.setattr(sending, "FileIO", Noted)
    monkeypatch.setattr(sending, "_send_by_kernel", send_nothing)
    tasks, blocking = list[asyncio.Task[Any]](), list[asyncio.Future[Any]]()
    app = web.Application()
    app.router.add_get("/", handler)
    with ThreadPoolExecutor(1) as one_thread:
        loop.set_default_executor(one_thread)
        async with TestClient(TestServer(app)) as client:
            asking = asyncio.ensure_future(client.get("/"))
            await until(at_step.is_set)
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            go_on.set()
            await until(lambda: files[0].closed)
            asking.cancel()
            await asyncio.gather(asking, *blocking, return_exceptions=True)
