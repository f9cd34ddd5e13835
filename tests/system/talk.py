"""Talking to a service over real sockets, as its users' programs do."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clips import make_clip
from multidict import CIMultiDictProxy
from processes import eventually
from waiting import WAIT_S
from yarl import URL

from faceswap import samples
from faceswap.client import EventStreamParser

on_both_databases = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True, scope="session")
"""Runs a test on either kind of database."""
ENDED = ("SUCCESS", "FAILED", "CANCELLED")
FRAMES = 12


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Told:
    """One event of a stream."""

    id: int
    type: str
    data: dict[str, Any]


class Media:
    """A clip of twelve numbered frames with sound, and a face, as bytes."""

    def __init__(self, folder: Path) -> None:
        self.video = make_clip(folder / "clip.mp4", FRAMES, sounds=["aac"]).read_bytes()
        self.image = samples.FACE.read_bytes()


class Api:
    """A user of one service."""

    def __init__(self, url: str, session: aiohttp.ClientSession, media: Media) -> None:
        self.url = url
        self.session = session
        self.media = media

    def form(self, **fields: Any) -> aiohttp.FormData:
        """Build the multipart request for the media; a field of None is left out, bytes are sent as a file."""
        form = aiohttp.FormData()
        for name, value in {"video": self.media.video, "image": self.media.image, **fields}.items():
            if isinstance(value, bytes):
                form.add_field(name, io.BytesIO(value), filename=f"my {name}", content_type="application/octet-stream")
            elif value is not None:
                form.add_field(name, value if isinstance(value, str) else json.dumps(value))
        return form

    async def call(self, method: str, path: str, **request: Any) -> Answer:
        """Send a call whose path is not normalised."""
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, allow_redirects=False, **request) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **request: Any) -> Answer:
        return await self.call("GET", path, **request)

    async def post(self, path: str, **request: Any) -> Answer:
        return await self.call("POST", path, **request)

    async def swap(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        """Ask for a swap without waiting for it."""
        return await self.post(
            "/face-swap", data=self.form(**fields), headers={"Prefer": "respond-async", **(headers or {})}
        )

    async def submit(self, **fields: Any) -> str:
        """Submit a job and return its prompt_id."""
        answer = await self.swap(**fields)
        assert answer.status == 202, answer.body
        return str(answer.json["prompt_id"])

    async def status(self, prompt_id: str) -> dict[str, Any]:
        answer = await self.get(f"/status/{prompt_id}")
        assert answer.status == 200, answer.body
        return dict(answer.json)

    async def until(self, prompt_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of these states; an end in any other fails the test."""

        async def reached() -> dict[str, Any] | None:
            document = await self.status(prompt_id)
            assert document["status"] in states or document["status"] not in ENDED, document
            return document if document["status"] in states else None

        return dict(await eventually(reached))

    async def done(self, prompt_id: str) -> dict[str, Any]:
        """Wait until a job has succeeded."""
        return await self.until(prompt_id, "SUCCESS")

    async def finished(self, **fields: Any) -> dict[str, Any]:
        """Run a job to its success and return its status."""
        return await self.done(await self.submit(**fields))

    @asynccontextmanager
    async def watching(self, prompt_id: str, **request: Any) -> AsyncIterator[AsyncIterator[Told]]:
        """Open a job's event stream."""
        async with self.session.get(f"{self.url}/events/{prompt_id}", **request) as response:
            assert response.status == 200, await response.text()
            yield told(response)

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection on which a test writes every byte itself."""
        url = URL(self.url)
        return await asyncio.open_connection(url.host, url.port)

    async def events(self, prompt_id: str, **request: Any) -> list[Told]:
        """Return all events of a job until its stream ends."""
        async with asyncio.timeout(WAIT_S), self.watching(prompt_id, **request) as stream:
            return [event async for event in stream]


async def told(response: aiohttp.ClientResponse) -> AsyncIterator[Told]:
    """Yield the events of an answer that is an event stream."""
    parser = EventStreamParser()
    async for chunk in response.content.iter_any():
        for message in parser.feed(chunk):
            yield Told(int(message.id), message.type, json.loads(message.data))


def half_an_upload(media: Media) -> bytes:
    """Build a request that ends after the video."""
    head = b"POST /face-swap HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n' + media.video
    return head + b"Content-Length: 900000\r\n\r\n" + part


UPGRADE = (
    "GET /face-swap-ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
).encode()
"""The request that opens a WebSocket (RFC 6455, 4.1)."""


def frame_head(kind: aiohttp.WSMsgType, length: int) -> bytes:
    """Build the head of a masked WebSocket frame whose mask changes nothing (RFC 6455, 5.2)."""
    return bytes([0x80 | kind, 0x80 | 127]) + length.to_bytes(8, "big") + bytes(4)


def durable(events: list[Told]) -> list[Told]:
    """Return the events that are never superseded."""
    return [event for event in events if event.type not in ("progress", "preview")]


def assert_problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is problem+json with this status and code, one sentence, and no internals."""
    kind = "application/problem+json; charset=utf-8"
    assert (answer.status, answer.headers["Content-Type"]) == (status, kind), answer.body[:500]
    document = dict(answer.json)
    assert {"type", "title", "status", "detail", "code"} <= document.keys() <= {*document.keys(), "prompt_id"}
    assert (document["status"], document["code"]) == (status, code), document
    assert_sentence(document["detail"])
    return document


def assert_sentence(text: str) -> None:
    """Check that a text is one line for a person, without traceback or server path."""
    assert text.endswith((".", "!")) and text == text.strip() and "\n" not in text, text
    for inside in ("Traceback", "/tmp/", "site-packages", "faceswap/", ".py", "Error("):
        assert inside not in text, text
