"""Conversations over `/face-swap-ws` that hypothesis makes up; `make fuzz GROUP=socket` holds thousands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
import jsonschema_rs
from aiohttp import WSCloseCode, WSMsgType
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from waiting import WAIT_S

from faceswap.api.operations import PROBLEMS, SOCKET_PROBLEMS

PATH = "/face-swap-ws"
REFUSED = (WSCloseCode.POLICY_VIOLATION, WSCloseCode.MESSAGE_TOO_BIG)

ADDRESSES = ("http://127.0.0.1:1/clip.mp4", "http://[::1]/face.png", "file:///etc/passwd", "data:,x", "http://", "")
NAMES = ("clip.mp4", "face.png", "../face.png", "\0", "\ud800", "a" * 300)
OPTIONS = ("crf", "face_index", "at", "format", "nonsense")


@dataclass(frozen=True)
class Part:
    """A binary frame: the first bytes of the video, the picture, or both."""

    names: tuple[str, ...]
    share: float

    def of(self, files: Mapping[str, bytes]) -> bytes:
        """Return its bytes."""
        whole = b"".join(files[name] for name in self.names)
        return whole[: round(self.share * len(whole))]


Frame: TypeAlias = "str | bytes | Part"
Strategy: TypeAlias = "st.SearchStrategy[Any]"

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES)
_anything = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def _likely(strategy: Strategy) -> Strategy:
    return strategy | strategy | _anything


def conversations(files: Mapping[str, bytes], jobs: Sequence[str]) -> st.SearchStrategy[list[Frame]]:
    """Make the frames that a client sends: near to what is understood, or anything.

    files   the video and the image
    jobs    ids to subscribe to
    """

    def announced(name: str) -> Strategy:
        sizes = st.sampled_from([len(files[name]), 1, 0, -1, 1 << 62]) | _anything
        return _likely(st.fixed_dictionaries({"filename": _likely(st.sampled_from(NAMES)), "size": sizes}))

    more = {
        "output_name": _likely(st.sampled_from(NAMES)),
        "options": _likely(st.dictionaries(st.sampled_from(OPTIONS), _anything, max_size=2)),
        "consent": _anything,
    }
    addresses = _likely(st.sampled_from(ADDRESSES))
    asked = {"video": announced("video"), "image": announced("image"), "video_url": addresses, "image_url": addresses}
    whole = {name: st.just({"filename": name, "size": len(file)}) for name, file in files.items()}
    subscribed = {"prompt_id": st.sampled_from(jobs) | st.sampled_from(NAMES) | _anything, "last_event_id": _anything}
    swap = st.fixed_dictionaries(whole, optional=more)
    first = st.one_of(
        swap,
        st.fixed_dictionaries({}, optional={**asked, **more, "images": st.lists(announced("image"), max_size=3)}),
        st.fixed_dictionaries({"action": st.just("subscribe")}, optional=subscribed),
    ).map(json.dumps)
    text = first | (st.just({"action": "cancel"}) | _anything).map(json.dumps) | st.text(max_size=20)
    names = st.sampled_from([("video",), ("image",), ("video", "image")])
    binary = st.builds(Part, names, st.just(1.0) | st.floats(0, 1)) | st.binary(max_size=64)
    others = st.lists(text | binary, max_size=4)
    uploaded = st.just(Part(("video", "image"), 1.0))
    return st.one_of(
        st.tuples(first, others).map(lambda made: [made[0], *made[1]]),
        st.tuples(swap.map(json.dumps), uploaded, text | binary).map(list),
        others,
    )


class Client:
    """A client that holds one conversation after the other."""

    def __init__(self, url: str, files: Mapping[str, bytes], headers: Mapping[str, str]) -> None:
        self._url = url
        self._files = files
        self._headers = headers
        self._schemas: dict[str, Any] = {}
        self.refusals: set[str] = set()
        """The codes of all refusals."""

    async def hold(self, frames: Sequence[Frame]) -> None:
        """Send these frames, then a ping, and read until it is answered or the service closes.

        Raises AssertionError where a frame of the service is not a described one, or its close is none of ours.
        """
        async with asyncio.timeout(WAIT_S), aiohttp.ClientSession(self._url, headers=self._headers) as session:
            if not self._schemas:
                async with session.get("/openapi.json") as response:
                    self._schemas = (await response.json())["components"]
            async with session.ws_connect(PATH, autoping=False) as socket:
                with contextlib.suppress(aiohttp.ClientConnectionError):  # an earlier frame may have been refused
                    for frame in frames:
                        if isinstance(frame, str):
                            await socket.send_str(frame)
                        else:
                            await socket.send_bytes(frame if isinstance(frame, bytes) else frame.of(self._files))
                    await socket.ping()
                refused = False
                async for message in socket:
                    if message.type is WSMsgType.PONG:
                        return
                    assert message.type is WSMsgType.TEXT and not refused, message
                    refused = self._take(json.loads(message.data))
                assert socket.close_code in (REFUSED if refused else (WSCloseCode.OK,)), socket.close_code

    def _take(self, event: dict[str, Any]) -> bool:
        """Hold an event against its schema; returns True for the one that says what is wrong with a frame."""
        self._check("SocketEvent", event)
        if event["event"] == "error" and event["id"] == 0:
            self._check("Problem", event["data"])
            code = event["data"]["code"]
            assert 400 <= event["data"]["status"] == {**PROBLEMS, **SOCKET_PROBLEMS}[code] < 500, event
            self.refusals.add(code)
            return True
        self._check(f"Event_{event['event']}", event["data"])
        return False

    def _check(self, name: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": self._schemas}
        errors = [error.message for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(value)]
        assert not errors, (name, value, errors)


def fuzz_socket(client: Client, made: st.SearchStrategy[list[Frame]], cases: int, number: int) -> None:
    """Hold so many conversations, the same ones for a seed. It blocks."""

    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(number)
    @given(made)
    def hold(frames: list[Frame]) -> None:
        asyncio.run(client.hold(frames))

    hold()
