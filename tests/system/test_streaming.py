"""A job told as Server-Sent Events: to who posted it, to any number of watchers, again and from any point on."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from processes import Engine, Service, dead_url, eventually, service_and_engine
from talk import FRAMES, Api, Media, Told, durable, on_both_databases, told
from waiting import WAIT_S
from yarl import URL

from faceswap.api import stream
from faceswap.api.keys import HUB, STORE
from faceswap.app import create_app
from faceswap.config import Settings
from faceswap.events import Payload

WATCHERS, READING_NOTHING = 50, 10
EVENT_BYTES, MOST_EVENTS = 64 * 1024, 100_000
"""More than any socket's buffers and the queue of a watcher hold."""


@on_both_databases
async def test_posting_streams_the_whole_story(
    tmp_path: Path, api_of: Callable[[Service], Api], own_database: dict[str, object]
) -> None:
    # A service of its own has learned nothing of how long the phases of such a painted job last.
    async with service_and_engine(tmp_path, {"paint": True}, **own_database) as (service, engine):
        api = api_of(service)
        await engine.hold()
        started = time.monotonic()
        async with api.session.post(f"{api.url}/face-swap", data=api.form(output_name="story")) as response:
            assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Accel-Buffering"] == "no"
            events = []
            async for event in told(response):
                events.append(event)
                if event.type == "preview":  # of the first frame
                    engine.release()
        lasted_s = time.monotonic() - started
        prompt_id = events[0].data["prompt_id"]
        check_story(events, prompt_id)
        types = [event.type for event in events]
        # The first and the last come as they happen.
        assert types.count("progress") <= 4 * lasted_s + 2
        assert 1 <= types.count("preview") <= lasted_s + 1
        assert durable(await api.events(prompt_id)) == durable(events)
        assert [event.id for event in events] == sorted({event.id for event in events})


def check_story(events: list[Told], prompt_id: str) -> None:
    """Check that the events of a job that succeeded are in order and have the promised fields."""
    assert events[0].type == "queued" and events[0].data == {
        "prompt_id": prompt_id,
        "message": "Face swap workflow queued successfully!",
        "status_url": f"/status/{prompt_id}",
        "events_url": f"/events/{prompt_id}",
        "queue_position": 1,
        "warnings": [],
    }
    executing = [event.data for event in events if event.type == "executing"]
    assert executing and all(data.keys() == {"node", "title", "message"} for data in executing)
    assert "Executing: ReActor 🌌 Fast Face Swap" in [data["message"] for data in executing]
    check_progress([event.data for event in events if event.type == "progress"])
    assert "Retrieving face-swapped video…" in [e.data["message"] for e in events if e.type == "status"]
    end = events[-1]
    assert end.type == "completed" and end.data.keys() == {
        *("message", "filename", "download_url", "prompt_id", "output_prefix", "bytes", "sha256", "warnings")
    }
    assert end.data["message"] == "🎉 Face swap completed successfully!"
    assert end.data["download_url"] == f"/download/{end.data['filename']}"
    assert (end.data["prompt_id"], end.data["output_prefix"]) == (prompt_id, "story")


def check_progress(told: list[dict[str, Any]]) -> None:
    """Check that progress starts near 0, never falls, and reaches 100 with the last frame."""
    percentages = [data["percentage"] for data in told]
    assert percentages[0] < 25 and percentages == sorted(percentages) and percentages[-1] == 100
    assert [data["message"] for data in told] == [f"Face swap progress: {value:.2f}%" for value in percentages]
    assert (told[-1]["current"], {data["total"] for data in told}) == (FRAMES, {FRAMES})
    assert all({"eta_seconds", "fps"} <= data.keys() for data in told)


@on_both_databases
async def test_last_event_id_resumes_exactly_there(api: Api) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    whole = await api.events(prompt_id)
    for number, event in enumerate(whole):
        assert await api.events(prompt_id, headers={"Last-Event-ID": str(event.id)}) == whole[number + 1 :]
        assert await api.events(prompt_id, params={"last_event_id": str(event.id)}) == whole[number + 1 :]


async def test_the_header_wins_over_the_query_as_it_is_the_newer_one(api: Api) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    whole = await api.events(prompt_id)
    newer = {"Last-Event-ID": str(whole[-2].id)}
    assert await api.events(prompt_id, headers=newer, params={"last_event_id": "0"}) == whole[-1:]


@on_both_databases
async def test_a_watcher_cut_off_in_the_middle_misses_nothing_durable(api: Api, engine: Engine) -> None:
    await engine.set_faults(wait_per_frame_s=0.05)
    prompt_id = await api.submit()
    seen: list[Told] = []
    while not seen or seen[-1].type != "completed":
        last = str(seen[-1].id) if seen else ""
        async with api.watching(prompt_id, headers={"Last-Event-ID": last}) as events:
            async for event in events:
                seen.append(event)
                if len(seen) % 2 == 0:
                    break
    assert durable(seen) == durable(await api.events(prompt_id))
    assert [event.id for event in seen] == sorted({event.id for event in seen})


async def test_a_client_that_goes_away_changes_nothing(api: Api, engine: Engine) -> None:
    await engine.set_faults(wait_per_frame_s=0.05)
    async with api.session.post(f"{api.url}/face-swap", data=api.form()) as response:
        queued = await anext(told(response))
    assert (await api.done(queued.data["prompt_id"]))["attempts"] == 1


async def test_a_job_that_fails_tells_why_and_ends(api: Api, engine: Engine) -> None:
    await engine.set_faults(unswapped=True)
    async with api.session.post(f"{api.url}/face-swap", data=api.form()) as response:
        events = [event async for event in told(response)]
    assert events[-1].type == "error"
    assert events[-1].data.keys() == {"detail", "code", "prompt_id"}
    assert events[-1].data["code"] == "no_face_detected"
    status = await api.status(events[-1].data["prompt_id"])
    assert (status["status"], status["code"], status["error"]) == (
        "FAILED",
        "no_face_detected",
        events[-1].data["detail"],
    )
    # The parts of a failed job stay, for it to be tried again; others look at what is left of theirs.
    assert (await api.call("DELETE", f"/jobs/{status['prompt_id']}")).status == 204


@on_both_databases
async def test_watchers_that_read_nothing_keep_nothing_from_the_others(api: Api, engine: Engine) -> None:
    await engine.hold()
    prompt_id = await api.submit()
    deaf = [open_deaf_watcher(api.url, prompt_id) for _ in range(READING_NOTHING)]

    async def all_there() -> bool:
        return bool((await api.get("/health")).json["watchers"] == WATCHERS)

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        stories = [tasks.create_task(api.events(prompt_id)) for _ in range(WATCHERS - READING_NOTHING)]
        await eventually(all_there)
        engine.release()
    for connection in deaf:
        connection.close()
    expected = durable(await api.events(prompt_id))
    assert len(expected) > 5
    assert all(durable(story.result()) == expected for story in stories)


def open_deaf_watcher(url: str, prompt_id: str) -> socket.socket:
    """Open a connection that asks for the events and never reads, with the smallest buffer there is."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    host, port = url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    connection.sendall(f"GET /events/{prompt_id} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    return connection


async def test_watchers_that_went_away_are_let_go(api: Api, engine: Engine) -> None:
    await engine.hold()
    prompt_id = await api.submit()

    async def watchers() -> int:
        return int((await api.get("/health")).json["watchers"])

    async def nobody() -> bool:
        return await watchers() == 0

    async def five() -> bool:
        return await watchers() == 5

    connections = [open_deaf_watcher(api.url, prompt_id) for _ in range(5)]
    await eventually(five)
    for connection in connections:
        connection.close()
    await eventually(nobody)
    assert (await api.call("DELETE", f"/jobs/{prompt_id}")).status == 204


@asynccontextmanager
async def app_in_this_process(folder: Path, media: Media) -> AsyncIterator[tuple[web.Application, Api]]:
    """Yield a service whose jobs stay queued, and a user of it."""
    comfyui_urls = (URL(dead_url()),)
    app = create_app(Settings(data_dir=folder, min_free_mb=0, comfyui_urls=comfyui_urls))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield app, Api(str(server.make_url("")).rstrip("/"), session, media)


async def test_silence_is_broken_by_a_comment_line(
    tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_S", 0.05)
    async with app_in_this_process(tmp_path, media) as (_, api):
        prompt_id = await api.submit()
        async with asyncio.timeout(WAIT_S), api.session.get(f"{api.url}/events/{prompt_id}") as response:
            assert (await response.content.readuntil(b"\n\n")).startswith(b"id: 1\nevent: queued\n")
            comments = 0
            while comments < 3:
                message = await response.content.readuntil(b"\n\n")
                comments += message.startswith(b": ")
                # That no engine is there is told meanwhile, too.
                assert message.startswith((b": ", b"id: 2\nevent: status\n"))


async def test_a_watcher_that_takes_nothing_is_dropped_and_the_others_miss_nothing(
    tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WRITE_TIMEOUT_S", 2)
    async with app_in_this_process(tmp_path, media) as (app, api):
        prompt_id = await api.submit()
        deaf = open_deaf_watcher(api.url, prompt_id)

        async def both() -> bool:
            return app[HUB].watchers == 2

        async with api.watching(prompt_id) as events:
            assert (await anext(events)).type == "queued"
            await eventually(both)
            number = 0
            while app[HUB].watchers == 2:
                number += 1
                assert number < MOST_EVENTS
                await app[STORE].add_event(
                    prompt_id, Payload("status", {"number": number, "message": "." * EVENT_BYTES})
                )
                # That no engine is there is told meanwhile, too.
                while "number" not in (event := await anext(events)).data:
                    assert event.type == "status"
                assert event.data["number"] == number
        deaf.close()
