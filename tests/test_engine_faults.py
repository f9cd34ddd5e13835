"""The faults that the engine injects on demand, and the engine as a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from clips import make_clip, numbered, read_numbers
from engine_rig import FACE, Rig, engine, workflow
from waiting import WAIT_S

from faceswap.engine.faults import EXIT_CODE, Faults, FaultSwitch, NodeFailure
from faceswap.engine.server import create_app


def picture(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with av.open(path) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


async def test_without_faults_there_is_no_way_to_ask_for_them(tmp_path: Path) -> None:
    async with TestClient(TestServer(create_app(tmp_path))) as client:
        assert (await client.post("/faults", json={"paint": True})).status == 404


async def test_faults_can_be_changed_while_the_engine_runs(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults()) as rig:
        await rig.post("/faults", {"unswapped": True})
        out = await rig.swap(workflow())
        assert np.abs(picture(out).astype(int) - numbered(0)).mean() < 5
        await rig.post("/faults", {"paint": True})
        out = await rig.swap(workflow(), "again")
        assert np.abs(picture(out)[40:56, 52:76].astype(int) - (255 - numbered(0)[40:56, 52:76])).mean() < 10


@pytest.mark.parametrize(
    "body",
    [{"no_such_fault": 1}, {"raise_in_node": {"message": "x"}}, {"raise_in_node": {"class": "x", "colour": "red"}}],
)
async def test_a_fault_that_does_not_exist_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async with engine(tmp_path) as rig, rig.client.post("/faults", json=body) as response:
        assert response.status == 400


def test_faults_go_off_after_so_many_prompts() -> None:
    switch = FaultSwitch(Faults.parse({"paint": True, "times": 2}))
    taken = [switch.take() for _ in range(4)]
    assert taken == [Faults(paint=True), Faults(paint=True), Faults(), Faults()]
    assert switch.now == Faults()


def test_a_node_failure_is_read_from_json() -> None:
    parsed = Faults.parse({"raise_in_node": {"class": "LoadImage", "exception_type": "URLError", "message": "no"}})
    assert parsed.raise_in_node == NodeFailure("LoadImage", "URLError", "no")


async def test_a_failing_node_reports_the_error_it_was_given(tmp_path: Path) -> None:
    failure = NodeFailure("ReActorFaceSwap", "torch.OutOfMemoryError", "Allocation on device")
    async with engine(tmp_path, Faults(raise_in_node=failure)) as rig:
        frames = await rig.run(workflow())
    error = next(frame["data"] for frame in frames if frame["type"] == "execution_error")
    assert error["exception_type"] == "torch.OutOfMemoryError"
    assert error["exception_message"] == "Allocation on device\n"


async def test_a_black_stand_in_is_one_frame_of_512(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(black_frame=True)) as rig:
        out = await rig.swap(workflow())
    assert picture(out).shape == (512, 512, 3) and picture(out).max() < 3
    assert len(read_numbers(out)) == 1


async def test_frames_can_go_missing(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, drop_frames=5)) as rig:
        assert read_numbers(await rig.swap(workflow())) == list(range(19))


async def test_an_output_can_be_lost(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, lose_output=True)) as rig:
        assert not (await rig.swap(workflow())).exists()


async def test_success_can_come_without_a_file(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, no_file=True)) as rig:
        await rig.submit(workflow(), "p")
        entry = await rig.ended("p")
    assert entry["status"]["completed"] and "gifs" not in entry["outputs"]["9"]


async def test_a_refused_prompt_may_be_queued_all_the_same(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, prompt_500_but_queued=True)) as rig:
        for fault, queued in (({"prompt_500": True}, False), ({"prompt_500_but_queued": True, "paint": True}, True)):
            await rig.post("/faults", fault)
            body = {"prompt": workflow(), "prompt_id": f"p{queued}"}
            async with rig.client.post("/prompt", json=body) as response:
                assert response.status == 500
        assert (await rig.ended("pTrue"))["status"]["completed"]
        assert list(await rig.get("/history")) == ["pTrue"]


async def test_a_stuck_prompt_runs_for_ever_while_http_answers(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(stuck=True)) as rig:
        await rig.submit(workflow(), "p")
        await rig.post("/interrupt")
        for _ in range(3):
            assert [entry[1] for entry in (await rig.get("/queue"))["queue_running"]] == ["p"]
        assert await rig.get("/history") == {}


async def test_a_forgotten_history_is_empty(tmp_path: Path) -> None:
    async with engine(tmp_path) as rig:
        await rig.swap(workflow())
        await rig.post("/faults", {"forget_history": True})
        assert await rig.get("/history/p") == {}


async def test_a_socket_can_be_dropped_after_some_frames(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, ws_drop_after=5)) as rig, rig.socket() as socket:
        await rig.submit(workflow(), "p")
        heard = [await socket.connection.receive() for _ in range(6)]
        assert [frame.type for frame in heard[:5]] == [aiohttp.WSMsgType.TEXT] * 5
        assert heard[5].type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        assert (await rig.ended("p"))["status"]["completed"]


async def test_a_deaf_socket_stays_open_and_hears_nothing(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, ws_deaf=True)) as rig, rig.socket() as socket:
        await rig.swap(workflow())
        with pytest.raises(TimeoutError):
            await socket.connection.receive(timeout=0.1)
        await rig.post("/faults", {"paint": True})
        await rig.submit(workflow(filename_prefix="b"), "q")
        await socket.until_end("q")


async def test_frames_can_come_twice_and_late(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(paint=True, ws_duplicate=True, ws_delay_s=0.01)) as rig:
        frames = await rig.run(workflow())
    assert frames[0:-1:2] == frames[1::2]


async def test_answers_can_come_late(tmp_path: Path) -> None:
    async with engine(tmp_path) as rig:
        await rig.post("/faults", {"http_delay_s": 0.2})
        at = asyncio.get_running_loop().time()
        await rig.get("/queue")
        assert asyncio.get_running_loop().time() - at >= 0.2


async def test_a_wait_per_frame_sets_the_pace(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(wait_per_frame_s=0.02)) as rig:
        at = asyncio.get_running_loop().time()
        await rig.swap(workflow())
        assert asyncio.get_running_loop().time() - at >= 24 * 0.02


async def test_a_swap_that_fails_when_much_is_encoded_leaves_no_file(tmp_path: Path) -> None:
    failure = {"class": "ReActorFaceSwap", "at_frame": 190}
    async with engine(tmp_path, Faults.parse({"paint": True, "raise_in_node": failure})) as rig:
        await rig.upload(make_clip(tmp_path / "long.mp4", 200), "long.mp4")
        await rig.submit(workflow("long.mp4"), "p")
        assert not (await rig.ended("p"))["status"]["completed"]
        assert [list((tmp_path / kind).iterdir()) for kind in ("temp", "output")] == [[], []]


class Process:
    """An engine process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()


@asynccontextmanager
async def started(data: Path, faults: dict[str, Any] | None = None) -> AsyncIterator[tuple[Process, Rig]]:
    options = ["--faults", json.dumps(faults)] if faults is not None else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faceswap.engine", "--no-token", "--watch-stdin", "--port", "0"),
        *("--data-dir", str(data), *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    assert line.startswith("faceswap engine: listening on http://127.0.0.1:")
    try:
        async with aiohttp.ClientSession(line.split()[-1]) as session:
            yield Process(process, line.split()[-1]), Rig(session, data)  # type: ignore[arg-type]  # all that Rig calls
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def prepare(rig: Rig, tmp_path: Path) -> None:
    await rig.upload(FACE, "face.png")
    await rig.upload(make_clip(tmp_path / "clip.mp4"))


async def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    async with started(tmp_path / "data") as (engine, rig):
        await prepare(rig, tmp_path)
        assert engine.process.stdin is not None
        engine.process.stdin.close()
        assert await engine.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_engine_in_the_middle_of_a_prompt(tmp_path: Path, number: signal.Signals) -> None:
    async with started(tmp_path / "data", {"wait_per_frame_s": 10 * WAIT_S}) as (engine, rig):
        await prepare(rig, tmp_path)
        async with rig.socket() as socket:
            await rig.submit(workflow(), "p")
            await socket.until(lambda f: f["type"] == "executing" and f["data"]["node"] == "3")
        engine.process.send_signal(number)
        assert await engine.exit_code() == 0
    assert list((tmp_path / "data" / "temp").iterdir()) == []


async def test_it_can_die_in_the_middle_of_a_swap_and_leaves_no_output(tmp_path: Path) -> None:
    async with started(tmp_path / "data", {"paint": True, "die_at_frame": 10}) as (engine, rig):
        await prepare(rig, tmp_path)
        await rig.submit(workflow(), "p")
        assert await engine.exit_code() == EXIT_CODE
    assert list((tmp_path / "data" / "output").iterdir()) == []


async def test_it_can_die_as_soon_as_a_prompt_was_answered(tmp_path: Path) -> None:
    async with started(tmp_path / "data", {"die_after_prompt": True}) as (engine, rig):
        await prepare(rig, tmp_path)
        assert (await rig.submit(workflow(), "p"))["prompt_id"] == "p"
        assert await engine.exit_code() == EXIT_CODE


async def test_a_folder_belongs_to_one_engine_at_a_time(tmp_path: Path) -> None:
    async with started(tmp_path / "data"):
        (tmp_path / "data" / "temp" / "in use.mp4").write_bytes(b"x")
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "faceswap.engine", "--port", "0", "--data-dir", str(tmp_path / "data")),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await second.communicate()
        assert second.returncode == 1
        assert said.decode() == f"faceswap engine: another engine uses {tmp_path / 'data'}\n"
        assert (tmp_path / "data" / "temp" / "in use.mp4").exists()


async def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path) -> None:
    async with started(tmp_path / "one") as (first, _):
        port = first.url.split(":")[-1]
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "faceswap.engine", "--port", port, "--data-dir", str(tmp_path / "two")),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await second.communicate()
        assert second.returncode == 1
        assert b"Traceback" not in said and port in said.decode()


async def test_what_a_dead_engine_left_in_temp_is_erased_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "data" / "temp" / "folder" / "left.mp4"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    async with started(tmp_path / "data"):
        assert not left.parent.exists()
