"""P7: jobs of tiny media, against a bare client of ComfyUI: one at a time, and from 32 clients at once."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from clips import make_clip, read_numbers
from common import cpu_s
from places import deployed
from processes import Engine
from rows import Effort, Figure, Place, at_least, at_most, difference, in_turn, ratio, rows_in

from faceswap.client import FaceSwap
from faceswap.config import resource_dir
from faceswap.samples import FACE
from faceswap.workflow import Workflow

CLIENTS, JOBS = 32, 160
FRAMES = 2
TAKES_S = 0.2
"""The time that the engine waits for a job of the first part."""
IN_A_ROW = 10
ENDS = (b"event: completed", b"event: error")

RunJob = Callable[[Path], Awaitable[bytes]]
"""Swaps the sample face into a clip; returns the result."""


async def submit_and_watch(client: FaceSwap, clip: Path) -> str:
    """Submit a job and watch it to its success; returns its id."""
    prompt_id = await client.submit(clip, FACE)
    async for event in client.events(prompt_id):
        assert event.type != "error", event.data
    return prompt_id


def form(**files: Path) -> aiohttp.FormData:
    """Return a form with files, read beforehand."""
    fields = aiohttp.FormData()
    for name, path in files.items():
        fields.add_field(name, path.read_bytes(), filename=path.name)
    return fields


@asynccontextmanager
async def through_service(submit_url: str, url: str) -> AsyncIterator[RunJob]:
    """Yield a client that submits at one node, and follows the events and downloads the result at another, or not."""
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def run(clip: Path) -> bytes:
            fields = form(video=clip, image=FACE)
            fields.add_field("return_prompt_id_only", "true")
            async with session.post(f"{submit_url}/face-swap", data=fields) as response:
                assert response.status == 200, await response.text()
                prompt_id = (await response.json())["prompt_id"]
            async with session.get(f"/events/{prompt_id}") as events:
                async for line in events.content:
                    if line.startswith(ENDS):
                        break
            async with session.get(f"/status/{prompt_id}") as response:
                status = await response.json()
            assert status["status"] == "SUCCESS", status
            async with session.get(status["result"]) as response:
                assert response.status == 200
                return await response.read()

        yield run


@asynccontextmanager
async def bare_client(url: str) -> AsyncIterator[RunJob]:
    """Yield a client of ComfyUI that uploads, prompts, hears of the end on one socket, and gets the output."""
    workflow = Workflow.load(resource_dir("workflows") / "FaceSwap-Reactor-API.json")
    ends: dict[str, asyncio.Future[None]] = {}
    async with (
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session,
        session.ws_connect("/ws?clientId=bare") as socket,
        asyncio.TaskGroup() as tasks,
    ):

        async def listen() -> None:
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.TEXT:
                    message = json.loads(frame.data)
                    data = message["data"]
                    assert message["type"] != "execution_error", data
                    if message["type"] == "executing" and data["node"] is None and data["prompt_id"] in ends:
                        ends[data["prompt_id"]].set_result(None)

        async def call(method: str, path: str, **body: Any) -> Any:
            async with session.request(method, path, **body) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        async def run(clip: Path) -> bytes:
            prompt_id = str(uuid.uuid4())
            names = []
            for path in (clip, FACE):
                fields = form(image=path)
                fields.add_field("subfolder", prompt_id)
                fields.add_field("overwrite", "true")
                names.append(f"{prompt_id}/{(await call('POST', '/upload/image', data=fields))['name']}")
            graph = workflow.build(video=names[0], images=(names[1],), output_prefix=f"bare/{prompt_id}", options={})
            ends[prompt_id] = asyncio.get_running_loop().create_future()
            await call("POST", "/prompt", json={"prompt": graph, "client_id": "bare", "prompt_id": prompt_id})
            await ends[prompt_id]
            outputs = (await call("GET", f"/history/{prompt_id}"))[prompt_id]["outputs"]
            (file,) = (one for node in outputs.values() for one in node.get("gifs", ()))
            place = {name: file[name] for name in ("filename", "subfolder", "type")}
            async with session.get("/view", params=place) as response:
                assert response.status == 200
                return await response.read()

        listening = tasks.create_task(listen())
        yield run
        listening.cancel()


def cpu_of(pids: Sequence[int], *, children: bool = True) -> float:
    """Return the CPU seconds of processes and, by default, of their children."""
    return sum(cpu_s(pid, children=children) for pid in pids)


async def one_at_a_time(run: RunJob, clip: Path, jobs: int, pids: Sequence[int]) -> tuple[float, float, float]:
    """Return the median ms of a job, and the CPU ms of the service and of its workers for one."""
    times = []
    own, all_ = cpu_of(pids, children=False), cpu_of(pids)
    for _ in range(jobs):
        started = time.perf_counter()
        await run(clip)
        times.append((time.perf_counter() - started) * 1000)
    own, all_ = cpu_of(pids, children=False) - own, cpu_of(pids) - all_
    return statistics.median(times), own / jobs * 1000, (all_ - own) / jobs * 1000


async def at_once(run: RunJob, clips: Sequence[Path], jobs: int, pids: Sequence[int]) -> tuple[float, float, float]:
    """Run jobs from one client for each clip; returns jobs a second, wrong results, CPU ms of the service for one."""
    each = max(1, jobs // len(clips))
    results: list[tuple[int, bytes]] = []

    async def work(number: int) -> None:
        results.extend([(number, await run(clips[number])) for _ in range(each)])

    started, own = time.perf_counter(), cpu_of(pids, children=False)
    await asyncio.gather(*map(work, range(len(clips))))
    seconds, own = time.perf_counter() - started, cpu_of(pids, children=False) - own
    wrong = await asyncio.to_thread(_wrong, clips[0].parent / "result.mp4", results)
    return len(results) / seconds, wrong, own / len(results) * 1000


def _wrong(scratch: Path, results: Sequence[tuple[int, bytes]]) -> int:
    """Return how many results do not show the numbers of their own clip."""
    wrong = 0
    for number, content in results:
        scratch.write_bytes(content)
        wrong += read_numbers(scratch) != [number * FRAMES + frame for frame in range(FRAMES)]
    return wrong


async def measure_row(place: Place, folder: Path, effort: Effort) -> list[Figure]:
    """Let the service and the bare client have the same engine in turn."""
    clips = [
        make_clip(folder / f"clip-{number}.mp4", FRAMES, size=(96, 64), first_number=number * FRAMES)
        for number in range(effort.of(CLIENTS, 2))
    ]
    jobs, in_a_row = effort.of(JOBS), effort.of(IN_A_ROW, 2)
    async with (
        Engine(folder, wait_per_frame_s=TAKES_S / FRAMES) as engine,
        deployed(place, folder, engine.url) as nodes,
        through_service(nodes.nodes[0].url, nodes.asked.url) as ours,
        bare_client(engine.url) as bare,
    ):
        pids = [node.pid for node in nodes.nodes]
        (times, cpu, workers), (bare_times, *_) = await in_turn(
            effort.rounds,
            lambda: one_at_a_time(ours, clips[0], in_a_row, pids),
            lambda: one_at_a_time(bare, clips[0], in_a_row, pids),
        )
        await engine.set_faults(paint=True)
        (a_second, wrong, busy_cpu), (bare_a_second, bare_wrong, _) = await in_turn(
            effort.rounds,
            lambda: at_once(ours, clips, jobs, pids),
            lambda: at_once(bare, clips, jobs, pids),
        )
        assert not any(bare_wrong), "the bare client got outputs of others"
    apart = [job - worker for job, worker in zip(times, workers, strict=True)]
    return [
        Figure("a job of 0.2 s", "ms", times, bare_times, difference),
        Figure("the same without the workers' CPU", "ms", apart, bare_times, difference, at_most(10)),
        Figure("probe and check in the workers", "CPU ms a job", workers, goal=at_most(40)),
        Figure("service's own process", "CPU ms a job", cpu, goal=at_most(12)),
        Figure(f"{CLIENTS} clients, instant jobs", "jobs/s", a_second, bare_a_second, ratio, at_least(1.0)),
        Figure(f"{CLIENTS} clients, service's own process", "CPU ms a job", busy_cpu),
        Figure(f"{CLIENTS} clients, results of other jobs", "results", wrong, goal=at_most(0), by_worst=True),
    ]


ROWS = rows_in("P7", f"jobs of {FRAMES} frames, against a bare client of the same engine", measure_row)
