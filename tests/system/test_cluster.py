"""Several nodes on one database: what one takes in another does, tells and hands out, whoever dies or stands still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clips import make_clip, read_numbers
from processes import Engine, eventually
from system.book import differing_events, durable, story_faults
from system.chaos import ClusterChaos
from system.cluster import Cluster
from system.cluster_users import socket_events
from system.proxy import Ledger, Proxy
from system.reckoning import status_of
from system.tcp_proxy import TcpProxy
from system.world import Node
from waiting import POLL_S, WAIT_S

from faceswap.client import FaceSwap, FaceSwapError, JobEvent
from faceswap.samples import FACE

FRAMES = 12
WATCHERS = int(os.environ.get("WATCHERS", "60"))
JOBS = 14
NOTES_LOST_S = 0.5
"""Between two cuts of all ways to the database."""

Action = Callable[["Rig", Node], Awaitable[None]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", FRAMES, sounds=["aac"])


class Rig:
    """Three nodes in front of one engine, and the events that watchers of one job hear."""

    def __init__(self, engine: Engine, cluster: Cluster) -> None:
        self.engine = engine
        self.cluster = cluster
        self.heard: list[list[JobEvent]] = []

    async def submit(self, clip: Path, node: Node) -> str:
        async with FaceSwap(await node.url()) as client:
            return await client.submit(clip, FACE)

    async def status(self, prompt_id: str, node: Node) -> dict[str, Any]:
        """Return a job's status, as soon as the node can tell it."""
        async with FaceSwap(await node.url()) as client:
            return dict(await status_of(client, prompt_id))

    async def has_succeeded(self, prompt_id: str, node: Node) -> bool:
        return bool((await self.status(prompt_id, node))["status"] == "SUCCESS")

    async def is_ready(self, node: Node) -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{await node.url()}/readyz") as answer:
            return answer.status == 200

    def way(self, node: Node) -> TcpProxy:
        """Return a node's way to the database."""
        return self.cluster.database_ways[self.cluster.nodes.index(node)]

    async def holder(self, but: Node | None = None) -> Node:
        """Wait until a node, another than one, holds the engine."""

        async def found() -> Node | None:
            names = [row["holder"] for row in await self.cluster.leases()]
            return next((node for node in self.cluster.nodes if node.name in names and node is not but), None)

        node: Node = await eventually(found)
        return node

    @asynccontextmanager
    async def watched(self, prompt_id: str, watchers: int) -> AsyncIterator[None]:
        """Let so many watch a job, at all nodes, to its end; the body begins when all have heard of progress."""

        async def all_have_heard() -> bool:
            return all(any(event.type == "progress" for event in heard) for heard in self.heard)

        self.heard = [[] for _ in range(watchers)]
        async with asyncio.timeout(3 * WAIT_S), asyncio.TaskGroup() as tasks:
            for number, heard in enumerate(self.heard):
                tasks.create_task(self._hear(prompt_id, number, heard))
            await eventually(all_have_heard)
            yield

    async def _hear(self, prompt_id: str, number: int, heard: list[JobEvent]) -> None:
        """Watch a job, from the next node after each cut; every second time over a WebSocket."""
        nodes = self.cluster.nodes
        while not heard or not heard[-1].terminal:
            node = nodes[number % len(nodes)]
            if node.is_up:
                after = heard[-1].id if heard else None
                with contextlib.suppress(FaceSwapError, aiohttp.ClientError, ConnectionError, TimeoutError):
                    async with FaceSwap(await node.url(), resumes=0) as client:
                        watch = socket_events(await node.url(), prompt_id, after)
                        async for event in watch if number % 2 else client.events(prompt_id, after):
                            heard.append(event)  # noqa: PERF401 - what came before a cut counts
            number += 1
            await asyncio.sleep(POLL_S)

    async def check_heard(self, prompt_id: str) -> None:
        """Check that every watcher heard the job's whole story, the same under each number."""
        rows = await self.cluster.records.rows(f"SELECT * FROM event WHERE prompt_id = '{prompt_id}' ORDER BY seq")
        stored = [(str(row["seq"]), row["type"]) for row in rows if row["type"] not in ("progress", "preview")]
        assert stored[-1][1] == "completed"
        for heard in self.heard:
            assert durable(heard) == stored
            assert story_faults(heard) == []
        assert differing_events(self.heard) == []


@asynccontextmanager
async def rig(folder: Path, **settings: object) -> AsyncIterator[Rig]:
    folder.joinpath("engine").mkdir()
    cluster, ledger = Cluster(folder, **settings), Ledger()
    async with (
        Engine(folder / "engine") as engine,
        Proxy(engine.url, ledger, random.Random(0), mischief=0).running() as proxy,
        cluster.running([proxy.url]),
    ):
        yield Rig(engine, cluster)
        assert ledger.run_twice == []


async def prompts_run(engine: Engine) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/history") as answer:
        return len(await answer.json())


@pytest.mark.timeout(900)
async def test_watchers_at_every_node_hear_the_same_to_the_end_while_the_holder_is_killed(
    tmp_path: Path, clip: Path
) -> None:
    async with rig(tmp_path, segment_frames=4) as nodes:
        await nodes.engine.hold()
        prompt_id = await nodes.submit(clip, nodes.cluster.nodes[0])
        async with nodes.watched(prompt_id, WATCHERS):
            holder = await nodes.holder()
            await holder.kill()
            other = await nodes.holder(but=holder)
            nodes.engine.release()
            while (await nodes.status(prompt_id, other))["status"] == "PROCESSING":
                # Notes between the nodes get lost, and what they tell of has to be read.
                for way in nodes.cluster.database_ways:
                    way.drop_connections()
                await asyncio.sleep(NOTES_LOST_S)
        await nodes.check_heard(prompt_id)
        assert (await nodes.status(prompt_id, other))["attempts"] == await prompts_run(nodes.engine) == FRAMES // 4


async def stand_still(nodes: Rig, node: Node) -> None:
    os.kill(node.service.pid, signal.SIGSTOP)


async def go_on(nodes: Rig, node: Node) -> None:
    os.kill(node.service.pid, signal.SIGCONT)


async def cut_off(nodes: Rig, node: Node) -> None:
    nodes.way(node).hold()


async def connect(nodes: Rig, node: Node) -> None:
    nodes.way(node).heal()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stop", "resume"), [(stand_still, go_on), (cut_off, connect)])
async def test_a_holder_that_comes_back_after_its_lease_changes_nothing(
    stop: Action, resume: Action, tmp_path: Path, clip: Path
) -> None:
    async with rig(tmp_path) as nodes:
        await nodes.engine.hold()
        prompt_id = await nodes.submit(clip, nodes.cluster.nodes[0])
        async with nodes.watched(prompt_id, 2 * len(nodes.cluster.nodes)):
            holder = await nodes.holder()
            await stop(nodes, holder)
            other = await nodes.holder(but=holder)
            nodes.engine.release()
            await eventually(lambda: nodes.has_succeeded(prompt_id, other))
            await resume(nodes, holder)
        await nodes.check_heard(prompt_id)
        await eventually(lambda: nodes.is_ready(holder))
        status = await nodes.status(prompt_id, holder)
        assert status == await nodes.status(prompt_id, other)
        assert status["attempts"] == await prompts_run(nodes.engine) == 1
        result = tmp_path / "result.mp4"
        async with FaceSwap(await holder.url()) as client:
            await client.download(status["result"].removeprefix("/download/"), result, sha256=status["sha256"])
        assert read_numbers(result) == list(range(FRAMES))


@pytest.mark.timeout(900)
async def test_no_job_is_lost_run_twice_or_half_done_on_several_nodes(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    files = ("folder", "moto")[seed % 2]
    chaos = ClusterChaos(tmp_path, JOBS, seed, nodes=3, files=files)
    await chaos.run()
    assert not chaos.book.violations, f"seed {seed}, files in {files}: {chaos.book.violations}"
    assert len(chaos.book.promised) == JOBS
    assert chaos.book.faults and chaos.book.heard, "nothing happened: this run proves nothing"
