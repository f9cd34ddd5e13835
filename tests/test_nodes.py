"""Several nodes are one service: any of them answers for any job, and what one leaves another takes up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import postgres
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from clips import make_clip, read_numbers
from node_rig import TIMEOUTS, NodeRig, Nodes
from processes import dead_url, files_in
from service_rig import EngineRig
from system.tcp_proxy import TcpProxy
from waiting import WAIT_S, eventually, until
from yarl import URL

from faceswap import app
from faceswap.api import keys
from faceswap.config import ConfigError
from faceswap.files import FilesUnavailable
from faceswap.janitor import Janitor
from faceswap.jobs import Segment
from faceswap.node import Node
from faceswap.store import Store, StoreError

FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with postgres.database() as url:
        yield Nodes(tmp_path, url)


async def three(stack: AsyncExitStack, nodes: Nodes, engine: EngineRig, **changes: float) -> list[NodeRig]:
    timeouts = replace(TIMEOUTS, **changes)
    names = ("one", "two", "three")
    return [await stack.enter_async_context(nodes.node(name, engine, timeouts=timeouts)) for name in names]


async def holder(rigs: list[NodeRig]) -> tuple[NodeRig, list[NodeRig]]:
    """Return the node that holds the only engine, and the others."""
    await until(lambda: any(rig.held for rig in rigs))
    [held] = [rig for rig in rigs if rig.held]
    return held, [rig for rig in rigs if rig is not held]


async def test_an_engine_out_of_one_nodes_reach_is_left_to_another(nodes: Nodes, clip: Path, tmp_path: Path) -> None:
    async with EngineRig(tmp_path / "engine", paint=True) as engine, AsyncExitStack() as stack:
        one = await stack.enter_async_context(nodes.node("one", engine))
        await until(lambda: one.held)
        two = await stack.enter_async_context(nodes.node("two", engine))
        [backend] = one.backends
        backend.client.url = URL(dead_url())
        await backend.listener.reconnect()
        await until(lambda: two.held and not one.held)
        status = await one.ended(await one.post(clip))
        assert status["status"] == "SUCCESS" and engine.submissions == 1


async def test_a_job_is_posted_to_one_node_watched_at_another_and_downloaded_from_a_third(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    async with EngineRig(tmp_path / "engine", paint=True) as engine, AsyncExitStack() as stack:
        one, two, three_ = await three(stack, nodes, engine)
        prompt_id = await one.post(clip)
        watching = [asyncio.create_task(rig.events(prompt_id)) for rig in (one, two, three_)]
        watched = await asyncio.gather(*watching)
        for events in watched:
            numbers = [event["id"] for event in events]
            assert numbers == sorted(set(numbers))
            assert (events[0]["event"], events[-1]["event"]) == ("queued", "completed")
        stored = {row[0] for row in nodes.sql("SELECT seq FROM event WHERE prompt_id = ?", prompt_id)}
        assert all(stored <= {event["id"] for event in events} for events in watched)
        for number, rig in enumerate((one, two, three_)):
            status = await rig.status(prompt_id)
            assert (status["status"], status["attempts"]) == ("SUCCESS", 1)
            file = await rig.download(status, tmp_path / f"result-{number}.mp4")
            assert read_numbers(file) == list(range(FRAMES))
        assert engine.submissions == 1


async def test_a_job_is_cancelled_at_a_node_that_does_not_run_it_and_retried_at_another(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    async with EngineRig(tmp_path / "engine", paint=True) as engine, AsyncExitStack() as stack:
        ours, (two, three_) = await holder(await three(stack, nodes, engine))
        engine.hold()
        prompt_id = await two.post(clip)
        await until(lambda: engine.running)
        waiting = asyncio.create_task(three_.get(f"/status/{prompt_id}?wait=60"))
        await three_.call("POST", f"/jobs/{prompt_id}/cancel", 202)
        assert (await two.ended(prompt_id))["status"] == "CANCELLED"
        await waiting
        await until(lambda: not engine.running and not ours.in_flight)
        engine.release()
        await two.call("POST", f"/jobs/{prompt_id}/retry", 202)
        assert (await three_.ended(prompt_id))["status"] == "SUCCESS"


async def test_a_cancel_that_no_note_tells_of_is_found(
    nodes: Nodes, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EngineRig(tmp_path / "engine", paint=True) as engine, AsyncExitStack() as stack:
        ours, (two, _) = await holder(await three(stack, nodes, engine))
        engine.hold()
        prompt_id = await ours.post(clip)
        await until(lambda: engine.running)
        monkeypatch.setattr("faceswap.feed.Feed.send", lambda *_: None)
        await two.call("POST", f"/jobs/{prompt_id}/cancel", 202)
        assert (await two.ended(prompt_id))["status"] == "CANCELLED"
        await until(lambda: not engine.running)


async def test_a_claim_whose_answer_comes_late_is_begun_once(
    nodes: Nodes, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Store.claim
    async with EngineRig(tmp_path / "engine", paint=True) as engine, nodes.node("one", engine) as one:
        answered = asyncio.Event()

        async def claim_late(store: Store, *arguments: Any, **named: Any) -> Segment | None:
            segment = await claim(store, *arguments, **named)
            if segment is not None:
                await until(lambda: one.in_flight)  # a look at the database has found it
                answered.set()
            return segment

        monkeypatch.setattr(Store, "claim", claim_late)
        engine.hold()
        prompt_id = await one.post(clip)
        await answered.wait()
        await until(lambda: engine.running)
        attempts = one.client.app[keys.SCHEDULER]._attempts
        assert len(attempts[prompt_id]) == 1
        engine.release()
        status = await one.ended(prompt_id)
        assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 1, 1)


async def test_a_running_job_is_erased_at_a_node_that_does_not_run_it(nodes: Nodes, clip: Path, tmp_path: Path) -> None:
    async with EngineRig(tmp_path / "engine", paint=True) as engine, AsyncExitStack() as stack:
        ours, (two, three_) = await holder(await three(stack, nodes, engine))
        engine.hold()
        prompt_id = await two.post(clip)
        await until(lambda: engine.running)
        watching = asyncio.create_task(three_.events(prompt_id))
        await eventually(lambda: three_.status(prompt_id))
        await three_.call("DELETE", f"/jobs/{prompt_id}", 204)
        assert not engine.running
        assert (await watching)[-1]["event"] == "cancelled"
        for rig in (ours, two, three_):
            await rig.call("GET", f"/status/{prompt_id}", 404)
            left = [name for name in files_in(rig.folder) if prompt_id in name]
            assert not left
        assert not [name for name in files_in(nodes.folder / "shared") if prompt_id in name]
        assert not nodes.sql("SELECT name FROM lease WHERE name LIKE 'join:%'")


async def test_a_preview_is_there_at_every_node(nodes: Nodes, clip: Path, tmp_path: Path) -> None:
    rigs: list[NodeRig] = []

    async def begin_when_watched(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/prompt":
            await until(lambda: rigs[2].client.app is not None and rigs[2].client.app[keys.FEED]._cursors)
        return await handler(request)

    async with EngineRig(tmp_path / "engine", begin_when_watched, paint=True) as engine, AsyncExitStack() as stack:
        rigs += await three(stack, nodes, engine, lease_s=WAIT_S)
        engine.hold()
        prompt_id = await rigs[0].post(clip)
        told: list[dict[str, Any]] = []
        watching = asyncio.create_task(rigs[2].events(prompt_id, found=told))  # previews are not stored

        async def seen(rig: NodeRig) -> bool:
            async with rig.client.get(f"/preview/{prompt_id}") as response:
                return response.status == 200 and (await response.read()).startswith(b"\xff\xd8")

        for rig in rigs:
            await eventually(lambda rig=rig: seen(rig))  # type: ignore[misc]
        await until(lambda: "preview" in {event["event"] for event in told})  # it is told a moment after it is there
        engine.release()
        await watching
        async with rigs[1].client.get(f"/preview/{prompt_id}") as response:
            assert response.status == 404


async def test_a_node_that_is_stopped_leaves_its_engine_to_another_at_once_and_nothing_runs_twice(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    timeouts = replace(TIMEOUTS, lease_s=3600.0)
    async with EngineRig(tmp_path / "engine", paint=True) as engine, AsyncExitStack() as stack:
        engine.hold()
        async with nodes.node("one", engine, timeouts=timeouts) as one:
            await until(lambda: one.held)
            two = await stack.enter_async_context(nodes.node("two", engine, timeouts=timeouts))
            prompt_id = await two.post(clip)
            await until(lambda: engine.running)
            assert (one.in_flight, two.in_flight) == (1, 0)
        await until(lambda: two.in_flight)
        engine.release()
        status = await two.ended(prompt_id)
        assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 1, 1)

        async def is_alone() -> bool:
            return [node["name"] for node in (await two.get("/health"))["nodes"]] == ["two"]

        await eventually(is_alone)


async def test_a_node_that_is_cut_off_from_the_database_is_replaced_and_comes_back_as_a_follower(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    async with (
        EngineRig(tmp_path / "engine", paint=True) as engine,
        TcpProxy(nodes.port).running() as way,
        TcpProxy(nodes.port).running() as other_way,
        nodes.node("one", engine, way=way) as one,
    ):
        await until(lambda: one.held)
        async with nodes.node("two", engine, way=other_way) as two:
            engine.hold()
            prompt_id = await two.post(clip)
            await until(lambda: engine.running and (one.in_flight or two.in_flight))
            if two.in_flight:  # the machine was too busy for the other's lease
                (one, two), way = (two, one), other_way
            watching = asyncio.create_task(two.events(prompt_id))
            way.hold()
            await until(lambda: not one.in_flight and not one.held)  # its own clock tells
            await until(lambda: two.in_flight)
            checks = await one.checks()
            assert not checks["database"]
            engine.release()
            status = await two.ended(prompt_id)
            assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 1, 1)
            way.heal()
            await one.is_ready()
            assert not (one.held and two.held)
            assert (await one.status(prompt_id))["status"] == "SUCCESS"
            numbers = [event["id"] for event in await watching]
            assert numbers == sorted(set(numbers))
            again = await one.post(clip)
            assert (await one.ended(again))["status"] == "SUCCESS"


async def test_what_only_a_node_that_is_gone_could_do_is_done_by_another(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    async with (
        EngineRig(tmp_path / "a", paint=True) as lost,
        EngineRig(tmp_path / "b", paint=True) as engine,
        TcpProxy(nodes.port).running() as way,
        nodes.node("two", engine) as two,
    ):
        engine.hold()
        busy = [await two.post(clip) for _ in range(2)]
        await until(lambda: engine.running and two.in_flight == 2)
        async with nodes.node("one", lost, way=way) as one:
            lost.hold()
            prompt_id = await two.post(clip)
            await until(lambda: lost.running)
            assert one.in_flight == 1
            way.hold()
            engine.release()
            status = await two.ended(prompt_id)
            assert (status["status"], status["attempts"]) == ("SUCCESS", 2)
            assert nodes.sql("SELECT backend FROM abandoned_prompt") == [(lost.url,)]
            way.heal()
            # It comes back, and has stopped what was given up.
            await until(lambda: not lost.running)
            await eventually(lambda: gone(nodes))
        for job in busy:
            assert (await two.ended(job))["status"] == "SUCCESS"


async def gone(nodes: Nodes) -> bool:
    return not await asyncio.to_thread(nodes.sql, "SELECT 1 FROM abandoned_prompt")


async def test_nodes_share_the_engines(nodes: Nodes, clip: Path, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(EngineRig(tmp_path / name, paint=True)) for name in "abc"]
        one = await stack.enter_async_context(nodes.node("one", *engines))
        await until(lambda: len(one.held) == 3)
        rigs = [one, *[await stack.enter_async_context(nodes.node(name, *engines)) for name in ("two", "three")]]
        await until(lambda: [len(rig.held) for rig in rigs] == [1, 1, 1])
        jobs = [await rig.post(clip) for rig, _ in itertools.product(rigs, range(2))]
        for prompt_id in jobs:
            assert (await one.ended(prompt_id))["status"] == "SUCCESS"
        assert sum(engine.submissions for engine in engines) == len(jobs)


async def test_health_names_the_nodes_and_who_holds_what(nodes: Nodes, tmp_path: Path) -> None:
    async with EngineRig(tmp_path / "engine") as engine, AsyncExitStack() as stack:
        rigs = await three(stack, nodes, engine, lease_s=WAIT_S, node_gone_s=WAIT_S / 4)
        ours, _ = await holder(rigs)

        async def told() -> dict[str, Any] | None:
            health = await rigs[0].get("/health")
            names = [node["name"] for node in health["nodes"]]
            leases = {lease["name"]: lease for lease in health["leases"]}
            lease = leases.get(f"backend:{engine.url}", {"left_s": 0, "holder": None})
            is_held = lease["left_s"] > 0 and lease["holder"] == ours.name
            return health if is_held and (names, health["status"]) == (["one", "three", "two"], "healthy") else None

        health = await eventually(told)
        [node] = [node for node in health["nodes"] if node["name"] == ours.name]
        assert node["seen_s_ago"] < 120
        assert node["backends"][0]["url"] == engine.url
        assert (await rigs[1].checks())["feed"]


async def test_no_outage_is_told_by_a_node_without_an_engine_while_another_has_one(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    timeouts = replace(TIMEOUTS, outage_s=0.0, gone_s=0.0, node_gone_s=60.0, lease_s=WAIT_S)
    async with (
        EngineRig(tmp_path / "engine", paint=True) as engine,
        nodes.node("one", engine, timeouts=timeouts) as one,
        nodes.node("two", engine, timeouts=timeouts) as two,
    ):
        await until(lambda: one.held)
        engine.hold()
        prompt_id = await two.post(clip)
        await until(lambda: engine.running)
        for _ in range(3):
            assert (await two.get("/health"))["outage"] is None
        engine.release()
        assert (await one.ended(prompt_id))["status"] == "SUCCESS"


async def test_a_node_with_files_of_its_own_does_not_join_others(nodes: Nodes, tmp_path: Path) -> None:
    timeouts = replace(TIMEOUTS, node_gone_s=WAIT_S)
    async with EngineRig(tmp_path / "engine") as engine, nodes.node("one", engine, timeouts=timeouts):
        with pytest.raises(ConfigError, match="FACESWAP_FILES_URL: the node one uses this database, and this node"):
            await web.AppRunner(nodes.app("two", engine, timeouts=timeouts, files_url="")).setup()
    async with EngineRig(tmp_path / "other") as engine, nodes.node("one", engine, timeouts=timeouts, files_url=""):
        with pytest.raises(ConfigError, match="FACESWAP_FILES_URL: the node one uses this database, and the node one"):
            await web.AppRunner(nodes.app("two", engine, timeouts=timeouts)).setup()


@pytest.mark.parametrize(
    "error", [FilesUnavailable("503"), StoreError("the connection was lost", transient=True)], ids=["files", "database"]
)
async def test_a_start_goes_on_when_what_nodes_share_is_back(
    error: Exception, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "FILES_RETRY_S", 0.0)
    raised = []

    def failing_once(name: str, whole: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def fail_once(*arguments: Any, **named: Any) -> Any:
            if name not in raised:
                raised.append(name)
                raise error
            return await whole(*arguments, **named)

        return fail_once

    for owner, name in ((Janitor, "clear_debris"), (Store, "client_id"), (Node, "join")):
        monkeypatch.setattr(owner, name, failing_once(name, getattr(owner, name)))
    async with EngineRig(tmp_path / "engine") as engine, nodes.node("one", engine):
        assert raised == ["client_id", "join", "clear_debris"]


async def test_each_node_listens_under_a_client_id_of_its_own(nodes: Nodes, tmp_path: Path) -> None:
    ids = []
    async with EngineRig(tmp_path / "engine") as engine:
        for name in ("one", "two", "one"):
            async with nodes.node(name, engine) as rig:
                ids.append(rig.backends[0].client_id)
    assert ids[0] == ids[2] != ids[1]


async def test_a_node_keeps_the_name_that_was_made_for_it(nodes: Nodes, tmp_path: Path) -> None:
    names = []
    async with EngineRig(tmp_path / "engine") as engine:
        for folder in ("here", "here", "there"):
            async with nodes.node(folder, engine, node="") as rig:
                health = await rig.get("/health")
                names.append(health["node"])
    assert names[0] == names[1] != names[2]
