"""Hostile media costs the service nothing but one clean error."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import clips
import cv2
import numpy as np
import psutil
import pytest
from waiting import until

from faceswap.errors import JobFailure, Problem, UnsupportedMedia
from faceswap.media import FacesFacts, MediaWorker, child, pool, worker

SAMPLES = Path(__file__).parent.parent / "faceswap" / "samples"


@pytest.fixture(autouse=True)
def forked_workers() -> None:
    """Start the workers as a service does."""


@pytest.fixture
async def media() -> AsyncIterator[MediaWorker]:
    async with MediaWorker() as media:
        yield media


def is_worker(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "faceswap.media.child" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def children() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if is_worker(process)]


def endless(path: Path) -> Path:
    """Make a file that a worker waits for when it opens it."""
    os.mkfifo(path)
    return path


async def test_facts_come_through_the_worker_as_they_are(tmp_path: Path, media: MediaWorker) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4", rate=Fraction(30000, 1001), sounds=["aac"])
    facts = await media.probe_video(clip, 1000)
    assert (facts.frames, facts.frame_rate, facts.audio[0].codec) == (24, Fraction(30000, 1001), "aac")
    image = await media.probe_image(SAMPLES / "astronaut.png")
    assert (image.width, image.height, image.format) == (512, 512, "png")


async def test_segments_are_joined_and_verified_in_the_worker(tmp_path: Path, media: MediaWorker) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20, sounds=["aac"])
    parts = [clips.make_clip(tmp_path / f"{i}.mp4", 10, first_number=10 * i) for i in range(2)]
    joined = await media.join(parts, source, tmp_path / "out.mp4", None, clips.JOB)
    assert joined.bytes == (tmp_path / "out.mp4").stat().st_size
    verdict = await media.verify(tmp_path / "out.mp4", source, first_frame=0, frame_count=20, frame_rate=None, crf=20)
    assert (verdict.frames, verdict.changed_share) == (20, 0.0)


async def test_errors_come_through_with_class_code_and_sentence(tmp_path: Path, media: MediaWorker) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(UnsupportedMedia) as problem:
        await media.probe_video(tmp_path / "text.mp4", 1000)
    assert (problem.value.status, problem.value.code) == (415, "not_a_video")
    assert str(tmp_path) not in problem.value.detail
    clip = clips.make_clip(tmp_path / "clip.mp4", 5)
    with pytest.raises(JobFailure) as failure:
        await media.verify(clip, clip, first_frame=0, frame_count=9, frame_rate=None, crf=20)
    assert (failure.value.code, failure.value.transient) == ("frames_missing", True)


async def test_an_image_that_declares_giant_sides_is_refused(tmp_path: Path, media: MediaWorker) -> None:
    for width, height in ((60000, 60000), (20000, 100), (8000, 8000)):
        with pytest.raises(Problem) as problem:
            await media.probe_image(clips.huge_png(tmp_path / "huge.png", width, height))
        assert (problem.value.status, problem.value.code) == (422, "image_too_large")


async def test_the_service_never_loads_a_decoder() -> None:
    code = "import sys, faceswap.media; print([m for m in ('av', 'cv2', 'numpy') if m in sys.modules])"
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


async def test_a_warm_worker_answers_one_call_after_the_other(tmp_path: Path, media: MediaWorker) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4", sounds=["aac"])
    await media.probe_video(clip, 1000)
    (worker,) = children()
    for _ in range(5):
        await media.probe_video(clip, 1000)
    assert children() == [worker]


async def test_at_most_two_probes_run_at_once(tmp_path: Path, media: MediaWorker) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4")
    facts = await asyncio.gather(*(media.probe_video(clip, 1000) for _ in range(12)))
    assert {f.frames for f in facts} == {24}
    assert len(children()) <= worker.PROBES_AT_ONCE


async def test_a_worker_that_is_killed_is_one_error_and_is_replaced(tmp_path: Path, media: MediaWorker) -> None:
    clip, fifo = clips.make_clip(tmp_path / "clip.mp4"), endless(tmp_path / "fifo")
    check = asyncio.create_task(media.verify(clip, fifo, first_frame=0, frame_count=24, frame_rate=None, crf=20))
    await until(lambda: bool(children()))
    children()[0].kill()
    with pytest.raises(JobFailure) as failure:
        await check
    assert (failure.value.code, failure.value.transient) == ("check_failed", True)
    assert (await media.probe_video(clip, 1000)).frames == 24


async def test_a_worker_that_met_bad_media_is_not_used_again(tmp_path: Path, media: MediaWorker) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    clip = clips.make_clip(tmp_path / "clip.mp4")
    await media.probe_video(clip, 1000)
    first = children()
    with pytest.raises(Problem):
        await media.probe_video(tmp_path / "text.mp4", 1000)
    await media.probe_video(clip, 1000)
    assert first != children()


async def test_a_worker_that_dies_between_two_calls_costs_nothing(tmp_path: Path, media: MediaWorker) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4")
    await media.probe_video(clip, 1000)
    children()[0].kill()
    assert (await media.probe_video(clip, 1000)).frames == 24


async def test_an_idle_worker_that_died_is_not_used_again(tmp_path: Path, media: MediaWorker) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4")
    await media.probe_video(clip, 1000)
    children()[0].kill()
    await until(lambda: not media._pool._idle[0].alive)
    assert (await media.probe_video(clip, 1000)).frames == 24


async def test_a_probe_that_takes_too_long_is_one_error(
    tmp_path: Path, media: MediaWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4")
    await media.probe_video(clip, 1000)
    monkeypatch.setattr(worker, "PROBE_TIMEOUT_S", 0.5)
    children()[0].send_signal(signal.SIGSTOP)
    with pytest.raises(Problem) as problem:
        await media.probe_video(clip, 1000)
    assert (problem.value.status, problem.value.code) == (422, "undecodable")
    await until(lambda: not children())
    monkeypatch.undo()
    assert (await media.probe_video(clip, 1000)).frames == 24


@pytest.mark.parametrize("call", child.CALLS)
def test_a_call_gets_its_arguments_as_its_function_wants_them(call: str) -> None:
    module, _, name = child.CALLS[call].partition(".")
    tree = ast.parse(Path(child.__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    for argument in (*function.args.args, *function.args.kwonlyargs):
        assert argument.annotation
        kinds = set(ast.unparse(argument.annotation).split(" | "))
        assert (kinds <= {"int", "float", "str", "bool", "None"}) != (argument.arg in child.CONVERSIONS)


async def test_memory_beyond_the_limit_is_refused_not_taken(tmp_path: Path) -> None:
    image = tmp_path / "large.png"
    cv2.imwrite(str(image), np.zeros((6000, 8000, 3), np.uint8))
    call = json.dumps({"call": "probe_image", "arguments": {"path": str(image)}}) + "\n"
    answers = []
    for limit in (child.MAX_DATA_BYTES, 450 << 20):
        code = f"from faceswap.media import child; child.MAX_DATA_BYTES = {limit}; child.main()"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(call.encode())
        answers.append(json.loads(await process.stdout.readline()))
        process.stdin.close()
        await process.wait()
    assert answers[0] == {"result": {"width": 8000, "height": 6000, "format": "png", "faces": 0, "flaws": []}}
    assert answers[1]["problem"]["code"] == "image_too_large"


async def test_a_cancelled_call_ends_its_worker(tmp_path: Path, media: MediaWorker) -> None:
    clip, fifo = clips.make_clip(tmp_path / "clip.mp4"), endless(tmp_path / "fifo")
    check = asyncio.create_task(media.verify(clip, fifo, first_frame=0, frame_count=24, frame_rate=None, crf=20))
    await until(lambda: bool(children()))
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    await until(lambda: not children())


async def test_a_join_that_is_killed_leaves_no_partial_file(tmp_path: Path, media: MediaWorker) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 48, size=(640, 480), crf=1)
    folder = tmp_path / "results"
    folder.mkdir()
    join = asyncio.create_task(media.join([source] * 1000, source, folder / "out.mp4", Fraction(24), clips.JOB))
    await until(lambda: any(folder.iterdir()))
    children()[0].kill()
    with pytest.raises(JobFailure):
        await join
    assert not list(folder.iterdir())


async def test_an_idle_worker_ends_after_a_while(
    tmp_path: Path, media: MediaWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "IDLE_S", 0.1)
    clip = clips.make_clip(tmp_path / "clip.mp4")
    await media.probe_video(clip, 1000)
    await until(lambda: not children())
    assert (await media.probe_video(clip, 1000)).frames == 24


async def test_closing_ends_all_workers_in_the_middle_of_their_work(tmp_path: Path) -> None:
    clip, fifo = clips.make_clip(tmp_path / "clip.mp4"), endless(tmp_path / "fifo")
    media = MediaWorker()
    check = asyncio.create_task(media.verify(clip, fifo, first_frame=0, frame_count=24, frame_rate=None, crf=20))
    await until(lambda: bool(children()))
    await media.probe_video(clip, 1000)
    await until(lambda: len(children()) == 2)
    await media.close()
    assert not children()
    with pytest.raises(JobFailure):
        await check


async def test_workers_end_when_the_service_is_killed(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4")
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from faceswap.media import MediaWorker\n"
        "async def main():\n"
        "    media = MediaWorker()\n"
        "    await media.probe_video(Path(sys.argv[1]), 1000)\n"
        "    print(media._pool._children[0].process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    service = await asyncio.create_subprocess_exec(sys.executable, "-c", code, clip, stdout=asyncio.subprocess.PIPE)
    assert service.stdout
    pid = int(await service.stdout.readline())
    assert psutil.pid_exists(pid)
    service.kill()
    await service.wait()

    def has_ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    await until(has_ended)


async def test_a_worker_inherits_no_file_or_socket_of_the_service(tmp_path: Path, media: MediaWorker) -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    os.set_inheritable(server.sockets[0].fileno(), True)
    await media.probe_video(clips.make_clip(tmp_path / "clip.mp4"), 1000)
    assert not children()[0].net_connections()
    server.close()
    await server.wait_closed()


async def test_more_looks_for_faces_than_are_taken_are_told_to_come_back(
    media: MediaWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MOST_LOOKS", 1)
    looks = (media.look_for_faces(SAMPLES / "astronaut.png", "image", 0.0, 9) for _ in range(2))
    found, problem = await asyncio.gather(*looks, return_exceptions=True)
    assert isinstance(found, FacesFacts)
    assert len(found.faces) == 1
    assert isinstance(problem, Problem)
    assert (problem.status, problem.code, problem.retry_after) == (503, "too_busy", 5)
    looks = (media.look_for_faces(SAMPLES / "astronaut.png", "image", 0.0, 9, waits=waits) for waits in (False, True))
    assert all(isinstance(found, FacesFacts) for found in await asyncio.gather(*looks))
