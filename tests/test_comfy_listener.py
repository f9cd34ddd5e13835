"""The listener against real sockets: every recording played back, drops, deaf sockets, hostile servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from ports import free_port
from replay import Replay
from waiting import WAIT_S, until
from yarl import URL

from faceswap.comfy import client as client_module
from faceswap.comfy import listener as listener_module
from faceswap.comfy.client import ComfyClient, ComfyError
from faceswap.comfy.listener import Listener
from faceswap.comfy.messages import Activity, Executing, Failed, Interrupted, Message, Preview, Progress

# What the socket alone tells of each prompt; "unheard" is one whose end it never told: deleted, lost, or still running.
ENDS = {
    "a_happy": {"29f67402-a98d-4438-84ff-7f56a8fd1451": "success"},
    "b_cached": {"a40fd3e5-ae9c-4798-af48-50f466d35838": "success"},
    "c_bad": {
        "bad-unknown_extra_input": "success",
        "bad-one_good_one_bad_output": "success",
        "bad-format_widget_out_of_range": "unheard",
    },
    "d_runtime_error": {
        "feed4e9e-59e9-41e4-9eb2-7fa73981b166": "RuntimeError",
        "c4eaf323-345e-4abc-801e-409b2872c8aa": "torch.OutOfMemoryError",
        "ab4b679b-65e8-45b3-9978-9e8dac3a83e5": "success",
        "d3e83bd4-7eb7-49d3-8bf9-fd14a995284c": "success",
        "4768118d-c3ce-4f2e-8d52-865e01b4686e": "success",
        "251837d7-d4bd-4225-9e3e-12016b0d2f87": "success",
    },
    "e_interrupt": {
        "int-2fa55114": "interrupted",
        "int9-a4dc2568": "interrupted",
        "afterint-fb8bac01": "success",
        "slow-9636bf2d": "interrupted",
    },
    "f_delete_pending": {"del1-123122": "success", "del3-6b49e0": "success", "cl4": "success"},
    "g_reconnect": {"g-43fde3": "success"},
    "g3_abrupt_drop": {"g3-65aed2": "success"},
    "i_kill9": {
        "i-done": "success",
        "i-run": "success",
        "i-exit": "unheard",
        "i-term": "unheard",
        "i-int": "success",
    },
    "k_two_jobs": dict.fromkeys(("k1-4861c5", "k2-b64267", "pa", "pb", "pc", "pd"), "success"),
    "l_preview_flags": {"l-3cf67f": "success"},
    "r_real_full": {"r-d5d46e": "success"},
    "r_real_nsfw_all": {"r-998e24": "success"},
    "r_real_variants": {
        **dict.fromkeys(("r-3a349d", "r-3a2caa", "r-64226f", "r-5de1fa", "r-da5a17", "r-5d2ffb"), "success"),
        **dict.fromkeys(("r-76a9c3", "r-d6bc32", "r-cda939", "r-f13ff1", "r-6daeba", "r-6ecfc6"), "success"),
        "r-0df51d": "urllib.error.URLError",
        "r-276230": "interrupted",
        "r-0415ea": "interrupted",
    },
}
SOCKETS = {"g_reconnect": 3, "g3_abrupt_drop": 2, "i_kill9": 4}


class Heard:
    """The messages that a listener received, and the number of its connections."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.connects = 0

    def connected(self) -> None:
        self.connects += 1

    def ends(self) -> dict[str, str]:
        ends: dict[str, str] = {}
        for message in self.messages:
            match message:
                case Activity(prompt_id):
                    ends.setdefault(prompt_id, "unheard")
                case Executing(str(prompt_id), None) if ends[prompt_id] == "unheard":
                    ends[prompt_id] = "success"
                case Failed(prompt_id, _, _, exception_type, _):
                    ends[prompt_id] = exception_type
                case Interrupted(prompt_id):
                    ends[prompt_id] = "interrupted"
        return ends


@asynccontextmanager
async def listening(
    app: web.Application, heard: Heard, client_id: str = "cl-test", **callbacks: Callable[..., object]
) -> AsyncIterator[Listener]:
    """Run a listener on a server that runs `app`."""
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        client = ComfyClient(URL(str(server.make_url("/"))), session)
        listener = Listener(
            client,
            client_id,
            callbacks.get("on_message", heard.messages.append),
            callbacks.get("on_connect", heard.connected),
        )
        task = asyncio.create_task(listener.run())
        try:
            yield listener
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "FIRST_PAUSE_S", 0.02)


@pytest.mark.parametrize("recording", ENDS)
async def test_every_recording_ends_each_prompt_the_right_way(recording: str) -> None:
    replay, heard = Replay(recording), Heard()
    async with listening(replay.app(), heard):
        async with asyncio.timeout(WAIT_S):
            await replay.finished.wait()
        assert heard.ends() == ENDS[recording]
        assert heard.connects >= SOCKETS.get(recording, 1)
    assert replay.heard[0] == {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


async def test_a_recorded_job_is_heard_from_start_to_end() -> None:
    replay, heard = Replay("a_happy"), Heard()
    async with listening(replay.app(), heard):
        await asyncio.wait_for(replay.finished.wait(), WAIT_S)
        nodes = [message.node for message in heard.messages if isinstance(message, Executing)]
        assert nodes == ["8", "12", "11", "10", "3", "9", None]
        frames = [message for message in heard.messages if isinstance(message, Progress)]
        assert len(frames) == 363 and {message.maximum for message in frames if message.node == "3"} >= {72.0}


async def test_previews_name_their_prompt_and_node() -> None:
    replay, heard = Replay("l_preview_flags"), Heard()
    async with listening(replay.app(), heard):
        await asyncio.wait_for(replay.finished.wait(), WAIT_S)
        previews = [message for message in heard.messages if isinstance(message, Preview)]
        assert len(previews) == 72
        assert {(preview.prompt_id, preview.node) for preview in previews} == {("l-3cf67f", "3")}


class SocketTable:
    """ComfyUI's table of sockets: one a client id, the last that opened, forgotten when any of that id closes."""

    def __init__(self) -> None:
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.all: list[web.WebSocketResponse] = []
        self.open = 0
        self.most_open = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ws", self._handle)
        app.on_shutdown.append(self._close)
        return app

    async def say(self, client_id: str, prompt_id: str) -> bool:
        """Send a frame about a prompt; return false when nobody is known by that client id."""
        socket = self.sockets.get(client_id)
        if socket is None:
            return False
        await socket.send_json({"type": "execution_start", "data": {"prompt_id": prompt_id}})
        return True

    async def _handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client_id = request.query["clientId"]
        self.sockets[client_id] = socket
        self.all.append(socket)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            async for _ in socket:
                pass
        finally:
            self.open -= 1
            self.sockets.pop(client_id, None)
        return socket

    async def _close(self, app: web.Application) -> None:
        for socket in self.all:
            await socket.close()


async def test_reconnect_sees_the_old_socket_closed_before_it_opens_the_next() -> None:
    table, heard = SocketTable(), Heard()
    async with listening(table.app(), heard) as listener:
        for count in range(1, 6):
            await until(lambda count=count: heard.connects == count)
            assert await table.say("cl-test", f"p{count}")
            await until(lambda count=count: Activity(f"p{count}") in heard.messages)
            await listener.reconnect()
        await until(lambda: heard.connects == 6)
        assert table.most_open == 1
        assert listener.reconnects == 5


async def test_a_deaf_socket_hears_again_after_a_reconnect() -> None:
    table, heard = SocketTable(), Heard()
    async with listening(table.app(), heard) as listener:
        await until(lambda: heard.connects == 1)
        table.sockets.clear()  # what an old socket does to its successor by closing late
        assert not await table.say("cl-test", "p1")
        await listener.reconnect()
        await until(lambda: heard.connects == 2)
        assert await table.say("cl-test", "p2")
        await until(lambda: heard.messages == [Activity("p2")])


async def test_it_connects_again_when_the_server_comes_back() -> None:
    heard, port = Heard(), free_port()
    async with aiohttp.ClientSession() as session:
        client = ComfyClient(URL(f"http://127.0.0.1:{port}"), session)
        listener = Listener(client, "cl-test", heard.messages.append, heard.connected)
        task = asyncio.create_task(listener.run())
        await until(lambda: listener.state == "disconnected" and not task.done())
        for connects in (1, 2):
            async with TestServer(SocketTable().app(), port=port):
                await until(lambda connects=connects: heard.connects == connects)
                assert listener.state == "connected"
            await until(lambda: listener.state != "connected")
        assert listener.reconnects == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_pauses_grow_to_a_limit_and_never_fall_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def note(_: Listener, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise RuntimeError("enough")

    monkeypatch.setattr(Listener, "_pause", note)
    monkeypatch.setattr(listener_module, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(listener_module, "STABLE_AFTER_S", 0.0)  # however long a connection takes not to come about
    async with aiohttp.ClientSession() as session:
        listener = Listener(ComfyClient(URL("http://127.0.0.1:9"), session), "cl", print, lambda: None)
        with pytest.raises(RuntimeError, match="enough"):
            await listener.run()
    assert 0.1 <= pauses[0] <= 0.2
    assert all(5 <= pause <= 10 for pause in pauses[6:])
    assert len(set(pauses)) == len(pauses)


async def test_cancelling_ends_it_and_closes_the_socket() -> None:
    table, heard = SocketTable(), Heard()
    async with listening(table.app(), heard):
        await until(lambda: heard.connects == 1)
    assert table.open == 0


async def test_a_server_that_answers_no_pings_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SOCKET_HEARTBEAT_S", 0.1)
    monkeypatch.setattr(client_module, "SOCKET_CLOSE_TIMEOUT_S", 0.1)
    heard = Heard()

    async def play_dead(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    app = web.Application()
    app.router.add_get("/ws", play_dead)
    async with listening(app, heard):
        await until(lambda: heard.connects >= 2)


async def test_frames_are_read_while_the_greeting_is_under_way() -> None:
    table, heard = SocketTable(), Heard()
    greeted = asyncio.Event()

    async def greet() -> None:
        heard.connected()
        await asyncio.wait_for(greeted.wait(), WAIT_S)

    async with listening(table.app(), heard, on_connect=greet):
        await until(lambda: heard.connects == 1)
        assert await table.say("cl-test", "p7")
        await until(lambda: heard.messages == [Activity("p7")])
        greeted.set()
        assert await table.say("cl-test", "p8")
        await until(lambda: Activity("p8") in heard.messages)
        assert heard.connects == 1


async def test_a_greeting_that_cannot_ask_counts_as_a_lost_connection() -> None:
    table, heard = SocketTable(), Heard()

    async def greet() -> None:
        heard.connected()
        if heard.connects == 1:
            raise ComfyError("ComfyUI cannot be reached.", transient=True)

    async with listening(table.app(), heard, on_connect=greet) as listener:
        await until(lambda: heard.connects == 2)
        await until(lambda: listener.state == "connected")
        assert table.most_open == 1


async def test_what_a_callback_raises_ends_the_listener() -> None:
    def refuse(_: Message) -> None:
        raise KeyError("a bug of ours")

    table = SocketTable()
    async with TestServer(table.app()) as server, aiohttp.ClientSession() as session:
        client = ComfyClient(URL(str(server.make_url("/"))), session)
        task = asyncio.create_task(Listener(client, "cl-test", refuse, lambda: None).run())
        await until(lambda: table.open == 1)
        assert await table.say("cl-test", "p")
        with pytest.raises(KeyError):
            await task


async def test_frames_that_make_no_sense_are_passed_over() -> None:
    heard = Heard()

    async def babble(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in ("", "{", "[]", "null", "[" * 5000, '{"type":"progress","data":7}', '{"type":["status"]}'):
            await socket.send_str(text)
        for blob in (b"", b"\0", b"\0\0\0\1", b"\0\0\0\4\xff\xff\xff\xff{}", b"\0\0\0\1\0\0\0\1GIF89a"):
            await socket.send_bytes(blob)
        await socket.send_json({"type": "execution_success", "data": {"prompt_id": "p"}})
        await socket.receive()
        await socket.receive()
        return socket

    app = web.Application()
    app.router.add_get("/ws", babble)
    async with listening(app, heard):
        await until(lambda: bool(heard.messages))
        assert heard.messages == [Activity("p")] and heard.connects == 1
