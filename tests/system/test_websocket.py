"""`/face-swap-ws` in its three forms, its cancel, its refusals and its closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType
from processes import Engine, Service
from talk import FRAMES, UPGRADE, Api, Told, assert_sentence, durable, frame_head
from waiting import WAIT_S

Socket = aiohttp.ClientWebSocketResponse


@asynccontextmanager
async def connected(api: Api, first: object = None) -> AsyncIterator[Socket]:
    """Open a socket and send the first frame."""
    async with asyncio.timeout(WAIT_S), api.session.ws_connect(f"{api.url}/face-swap-ws") as socket:
        if first is not None:
            await socket.send_json(first)
        yield socket


async def told(socket: Socket) -> AsyncIterator[Told]:
    """Yield the events of a socket until it is closed."""
    async for message in socket:
        assert message.type is WSMsgType.TEXT
        frame = json.loads(message.data)
        assert frame.keys() == {"id", "event", "data"}
        yield Told(frame["id"], frame["event"], frame["data"])


async def story(socket: Socket) -> list[Told]:
    """Return all events of a socket that is closed with 1000 after the last."""
    events = [event async for event in told(socket)]
    assert socket.close_code == WSCloseCode.OK
    assert [event.id for event in events] == sorted({event.id for event in events})
    return events


def announced(api: Api, **fields: Any) -> dict[str, Any]:
    """Build the first frame of an upload."""
    media = api.media
    return {
        "video": {"filename": "my clip.mp4", "size": len(media.video)},
        "image": {"filename": "face.jpg", "size": len(media.image)},
        **fields,
    }


async def test_urls_are_fetched_and_the_job_is_told_to_its_end(api: Api, media_url: str) -> None:
    request = {"video_url": f"{media_url}/video", "image_url": f"{media_url}/image", "output_name": "from urls"}
    async with connected(api, {**request, "options": {"crf": 30}}) as socket:
        events = await story(socket)
    prompt_id = events[0].data["prompt_id"]
    assert (events[0].type, events[-1].type) == ("queued", "completed")
    assert durable(events) == durable(await api.events(prompt_id))
    status = await api.status(prompt_id)
    assert (status["output_prefix"], status["options"]["crf"]) == ("from urls", 30)


@pytest.mark.parametrize("frame_bytes", [997, 64 * 1024, 10_000_000])
async def test_an_upload_comes_in_frames_of_any_size(api: Api, frame_bytes: int) -> None:
    async with connected(api, announced(api)) as socket:
        body = api.media.video + api.media.image
        for start in range(0, len(body), frame_bytes):
            await socket.send_bytes(body[start : start + frame_bytes])
        events = await story(socket)
    assert events[-1].type == "completed"
    assert (await api.status(events[-1].data["prompt_id"]))["progress"]["total"] == FRAMES


async def test_an_upload_and_a_url_may_be_mixed(api: Api, media_url: str) -> None:
    first = announced(api, video_url=f"{media_url}/video")
    del first["video"]
    async with connected(api, first) as socket:
        await socket.send_bytes(api.media.image)
        assert (await story(socket))[-1].type == "completed"


async def test_a_subscriber_hears_all_or_what_it_missed(api: Api, engine: Engine) -> None:
    await engine.set_faults(wait_per_frame_s=0.05)
    prompt_id = await api.submit()
    async with connected(api, {"action": "subscribe", "prompt_id": prompt_id}) as socket:
        assert durable(await story(socket)) == durable(await api.events(prompt_id))
    whole = await api.events(prompt_id)
    for last in (whole[2].id, str(whole[2].id)):
        subscribe = {"action": "subscribe", "prompt_id": prompt_id, "last_event_id": last}
        async with connected(api, subscribe) as socket:
            assert await story(socket) == whole[3:]


async def test_a_job_is_cancelled_over_its_socket(api: Api, engine: Engine) -> None:
    await engine.hold()
    prompt_id = await api.submit()
    async with connected(api, {"action": "subscribe", "prompt_id": prompt_id}) as socket:
        is_asked = False
        async for event in told(socket):
            if event.type == "progress" and not is_asked:
                await socket.send_json({"action": "cancel"})
                is_asked = True
            last = event
        assert (last.type, socket.close_code) == ("cancelled", WSCloseCode.OK)
    assert (await api.status(prompt_id))["status"] == "CANCELLED"


async def test_a_cancel_that_comes_late_does_not_hide_the_end(api: Api) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    async with connected(api, {"action": "subscribe", "prompt_id": prompt_id}) as socket:
        await socket.send_json({"action": "cancel"})
        assert (await story(socket))[-1].type == "completed"


async def test_closing_the_socket_does_not_cancel(api: Api, engine: Engine) -> None:
    await engine.set_faults(wait_per_frame_s=0.05)
    async with connected(api, announced(api)) as socket:
        await socket.send_bytes(api.media.video + api.media.image)
        prompt_id = (await anext(told(socket))).data["prompt_id"]
    assert (await api.done(prompt_id))["attempts"] == 1


async def refusal(socket: Socket, close_code: int) -> dict[str, Any]:
    """Return the one event, an error, before the socket is closed with this code."""
    events = [event async for event in told(socket)]
    assert [event.type for event in events] == ["error"]
    assert socket.close_code == close_code
    assert_sentence(events[0].data["detail"])
    return events[0].data


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("malformed_json", "{"),
        ("malformed_json", "[]"),
        ("malformed_json", "[" * 10_000),
        ("malformed_json", b"binary"),
        ("missing_video", {}),
        ("missing_image", {"video_url": "http://127.0.0.1:1024/"}),
        ("duplicate_video", {"video": {"size": 1}, "video_url": "http://127.0.0.1:1024/", "image": {"size": 1}}),
        ("invalid_video", {"video": {"filename": "x"}, "image": {"size": 1}}),
        ("invalid_video", {"video": {"size": -1}, "image": {"size": 1}}),
        ("empty_video", {"video": {"size": 0}, "image": {"size": 0}}),
        ("unknown_field", {"colour": "red"}),
        ("unknown_option", {"options": {"colour": "red"}}),
        ("invalid_option", {"options": {"crf": 99}}),
        ("invalid_output_name", {"output_name": "../x"}),
        ("invalid_url", {"video_url": "file:///etc/passwd"}),
        ("invalid_url", {"video": {"size": 9}, "image": {"size": 9}, "webhook_url": "ftp://example.org/"}),
        ("unknown_workflow", {"video": {"size": 9}, "image": {"size": 9}, "options": {"workflow": "none"}}),
        ("url_unreachable", {"video_url": "http://127.0.0.1:1024/", "image_url": "http://127.0.0.1:1024/"}),
        ("unknown_prompt_id", {"action": "subscribe"}),
        ("unknown_prompt_id", {"action": "subscribe", "prompt_id": "none"}),
        ("unknown_prompt_id", {"action": "subscribe", "prompt_id": "\ud800"}),
        ("unknown_field", {"action": "dance"}),
    ],
)
async def test_a_wrong_first_frame_is_told_and_closed_with_1008(api: Api, code: str, first: Any) -> None:
    async with connected(api) as socket:
        match first:
            case str():
                await socket.send_str(first)
            case bytes():
                await socket.send_bytes(first)
            case _:
                await socket.send_json(first)
        assert (await refusal(socket, WSCloseCode.POLICY_VIOLATION))["code"] == code


async def test_a_wrong_last_event_id_is_told(api: Api) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    first = {"action": "subscribe", "prompt_id": prompt_id, "last_event_id": "x"}
    async with connected(api, first) as socket:
        assert (await refusal(socket, WSCloseCode.POLICY_VIOLATION))["code"] == "invalid_last_event_id"


@pytest.mark.usefixtures("nothing_is_left")
async def test_bytes_that_are_no_video_are_told_and_closed_with_1008(api: Api) -> None:
    async with connected(api, {"video": {"size": 5000}, "image": {"size": len(api.media.image)}}) as socket:
        await socket.send_bytes(bytes(5000) + api.media.image)
        assert (await refusal(socket, WSCloseCode.POLICY_VIOLATION))["code"] == "not_a_video"


@pytest.mark.usefixtures("nothing_is_left")
async def test_more_bytes_than_announced_are_told(api: Api) -> None:
    async with connected(api, {"video": {"size": 10}, "image": {"size": 10}}) as socket:
        await socket.send_bytes(bytes(21))
        assert (await refusal(socket, WSCloseCode.MESSAGE_TOO_BIG))["code"] == "too_large"


@pytest.mark.usefixtures("nothing_is_left")
async def test_too_large_an_upload_is_told_before_it_is_sent_and_closed_with_1009(api: Api) -> None:
    async with connected(api, {"video": {"size": 1 << 40}, "image": {"size": 1}}) as socket:
        assert (await refusal(socket, WSCloseCode.MESSAGE_TOO_BIG))["code"] == "too_large"


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("is_first", [True, False])
async def test_too_large_a_frame_is_closed_with_1009_before_it_is_read(api: Api, is_first: bool) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE)
    if not is_first:
        first = json.dumps(announced(api)).encode()
        writer.write(frame_head(WSMsgType.TEXT, len(first)) + first)
    writer.write(frame_head(WSMsgType.BINARY, 17 << 20))
    async with asyncio.timeout(WAIT_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        kind, length = await reader.readexactly(2)
        close = await reader.readexactly(length)
    writer.close()
    assert (kind & 0x0F, int.from_bytes(close[:2])) == (WSMsgType.CLOSE, WSCloseCode.MESSAGE_TOO_BIG)


async def test_large_first_frames_cost_no_memory(api: Api, service: Service) -> None:
    """Fifteen megabytes of small objects were four hundred as JSON, for each of six sockets, and stayed."""
    before = service.memory_mb()
    first = '{"options":[' + "{}," * (5 << 20) + "{}]}"

    async def refused() -> int | None:
        async with connected(api) as socket:
            with contextlib.suppress(ConnectionError):
                await socket.send_str(first)
            async for _ in socket:
                pass
            return socket.close_code

    codes = await asyncio.gather(*(refused() for _ in range(6)))
    assert set(codes) <= {WSCloseCode.MESSAGE_TOO_BIG, WSCloseCode.ABNORMAL_CLOSURE}
    assert service.memory_mb() - before < 64


async def test_nothing_is_compressed(api: Api) -> None:
    async with api.session.ws_connect(f"{api.url}/face-swap-ws", compress=15) as socket:
        assert not socket.compress


@pytest.mark.usefixtures("nothing_is_left")
async def test_a_text_in_the_middle_of_an_upload_is_told(api: Api) -> None:
    async with connected(api, announced(api)) as socket:
        await socket.send_bytes(api.media.video[:100])
        await socket.send_str("hello")
        assert (await refusal(socket, WSCloseCode.POLICY_VIOLATION))["code"] == "unexpected_message"


@pytest.mark.usefixtures("nothing_is_left")
async def test_an_upload_that_is_cut_off_leaves_nothing(api: Api) -> None:
    async with connected(api, announced(api)) as socket:
        await socket.send_bytes(api.media.video[:100])


async def test_an_unknown_action_ends_the_watching_and_not_the_job(api: Api, engine: Engine) -> None:
    await engine.hold()
    prompt_id = await api.submit()
    async with connected(api, {"action": "subscribe", "prompt_id": prompt_id}) as socket:
        await socket.send_json({"action": "dance"})
        events = [event async for event in told(socket)]
        assert (events[-1].type, events[-1].data["code"]) == ("error", "unknown_action")
        assert socket.close_code == WSCloseCode.POLICY_VIOLATION
    engine.release()
    await api.done(prompt_id)


async def test_a_full_queue_is_told(folder_service: Callable[..., Service], api_of: Callable[[Service], Api]) -> None:
    async with folder_service(queue_limit=1) as service:
        api = api_of(service)
        await api.submit()
        async with connected(api, announced(api)) as socket:
            assert (await refusal(socket, WSCloseCode.POLICY_VIOLATION))["code"] == "queue_full"


async def test_a_call_that_is_no_websocket_is_refused(api: Api) -> None:
    answer = await api.get("/face-swap-ws")
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json; charset=utf-8")


async def test_nothing_in_these_tests_was_an_error_inside(service: Service) -> None:
    assert "Traceback" not in service.log()
