"""A batch as a user meets it: the real command, killed and called again, in front of the real service."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from clips import make_clip
from processes import dead_url
from service_rig import EngineRig, ServiceRig, running_service, service_and_engines
from waiting import WAIT_S, until

from faceswap import FaceSwap, FaceSwapError, Result, samples
from faceswap.cli import main
from faceswap.cli.batch import Batch
from faceswap.cli.clips import Clip, stems
from faceswap.cli.display import display
from faceswap.cli.manifest import read_manifest
from faceswap.cli.record import RECORD_NAME, Record, RecordError
from faceswap.errors import BadRequest
from faceswap.store import Store

FACE = str(samples.FACE)
CLIPS = 20
KILLED_AT = 10


class Command:
    """`faceswap` with these words, as a process of its own."""

    def __init__(self, *words: str | Path, **environ: str) -> None:
        self._words = [sys.executable, "-m", "faceswap", *map(str, words)]
        self._environ = {**os.environ, **environ}

    async def begin(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        # A shell that starts the suite in the background has it ignore Ctrl-C, and its children with it.
        default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return await asyncio.create_subprocess_exec(
            *self._words, stdout=pipe, stderr=pipe, env=self._environ, preexec_fn=default
        )

    async def run(self, status: int = 0) -> list[dict[str, Any]]:
        """Run to the end, which has this exit status; returns what `--json` told."""
        process = await self.begin()
        async with asyncio.timeout(WAIT_S):
            told, errors = await process.communicate()
        assert process.returncode == status, errors.decode()
        return [json.loads(line) for line in told.splitlines()]


@asynccontextmanager
async def batch(
    folder: Path, clips: int, **faults: Any
) -> AsyncIterator[tuple[ServiceRig, EngineRig, Callable[..., Command], list[Path]]]:
    """Yield a service, its engine, the command that swaps some clips into `out`, and the clips."""
    (folder / "clips").mkdir()
    files = [make_clip(folder / "clips" / f"{number:02}.mp4", 3) for number in range(clips)]
    async with service_and_engines(folder, paint=True, **faults) as (service, [engine]):
        url = str(service.client.make_url(""))

        def swap(*words: str | Path) -> Command:
            return Command("swap", "--image", FACE, *files, "-o", folder / "out", "--url", url, "--json", *words)

        yield service, engine, swap, files


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir() if path.name != RECORD_NAME)


async def test_a_batch_of_20_that_is_killed_at_the_tenth_goes_on_and_does_none_twice(tmp_path: Path) -> None:
    async with batch(tmp_path, CLIPS) as (service, engine, swap, _):
        engine.hold(after=KILLED_AT)
        killed = await swap().begin()
        assert killed.stdout is not None
        async with asyncio.timeout(WAIT_S):
            for _ in range(KILLED_AT):
                assert json.loads(await killed.stdout.readline())["status"] == "SUCCESS"
        await until(lambda: engine.running)
        killed.kill()
        await killed.communicate()
        engine.release()

        told = await swap().run()
        assert Counter(end["status"] for end in told) == {"SKIPPED": KILLED_AT, "SUCCESS": CLIPS - KILLED_AT}
        assert results(tmp_path) == [f"{number:02}.mp4" for number in range(CLIPS)]
        jobs = (await service.get(f"/jobs?limit={2 * CLIPS}"))["jobs"]
        assert [job["status"] for job in jobs] == ["SUCCESS"] * CLIPS
        assert engine.submissions == CLIPS

        # Killed between the service's answer and the record of it: the same submission is the same job.
        record, last = tmp_path / "out" / RECORD_NAME, tmp_path / "out" / f"{CLIPS - 1:02}.mp4"
        last.unlink()
        kept = [
            line
            for line in record.read_bytes().splitlines(keepends=True)
            if last.name.encode() not in line or b'"prompt_id": null' in line
        ]
        record.write_bytes(b"".join([*kept, b'{"clip": "cut sho']))
        (again,) = [end for end in await swap().run() if end["status"] != "SKIPPED"]
        assert again["prompt_id"] in {job["prompt_id"] for job in jobs}
        assert last.is_file()


async def test_clips_that_failed_are_tried_again_by_the_next_call(tmp_path: Path) -> None:
    async with batch(tmp_path, 2) as (service, engine, swap, files):
        files[0].write_bytes(b"not a video at all")
        engine.set_faults(unswapped=True)
        failed = {Path(end["clip"]).name: end for end in await swap().run(1)}
        assert [failed[file.name]["code"] for file in files] == ["not_a_video", "no_face_detected"]

        make_clip(files[0], 3)
        engine.set_faults(paint=True)
        mended = {Path(end["clip"]).name: end for end in await swap().run()}
        assert [end["status"] for end in mended.values()] == ["SUCCESS"] * 2
        assert mended["01.mp4"]["prompt_id"] == failed["01.mp4"]["prompt_id"]
        assert len((await service.get("/jobs"))["jobs"]) == 2
        assert results(tmp_path) == ["00.mp4", "01.mp4"]


async def test_other_options_are_done_anew_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00.mp4").write_bytes(b"somebody's")
    async with batch(tmp_path, 1) as (_, engine, swap, _):
        await swap().run()
        await swap("--option", "crf=30").run()
        assert engine.submissions == 2
        assert results(tmp_path) == ["00-2.mp4", "00.mp4"]
        assert (tmp_path / "out" / "00.mp4").read_bytes() == b"somebody's"


async def test_an_interrupt_cancels_the_jobs_of_a_batch_and_the_next_call_goes_on_with_them(tmp_path: Path) -> None:
    async with batch(tmp_path, 2) as (service, engine, swap, _):
        engine.hold()
        interrupted = await swap().begin()
        await until(lambda: engine.running)
        held = (await service.get("/jobs"))["jobs"]
        record = tmp_path / "out" / RECORD_NAME
        await until(lambda: all(job["prompt_id"] in record.read_text() for job in held))  # the command knows them too
        interrupted.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S):
            _, errors = await interrupted.communicate()
        assert interrupted.returncode == 130
        assert b"the same command goes on" in errors
        for job in held:
            assert (await service.ended(job["prompt_id"]))["status"] == "CANCELLED"
        engine.release()
        told = await swap().run()
        assert {job["prompt_id"] for job in held} <= {end["prompt_id"] for end in told}
        assert [end["status"] for end in told] == ["SUCCESS"] * 2


async def test_an_interrupt_cancels_a_job_whose_submission_was_not_answered_yet_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with batch(tmp_path, 2) as (service, engine, swap, _):
        engine.hold()
        accepted, interrupted = asyncio.Event(), asyncio.Event()
        create = Store.create

        async def create_and_wait(store: Store, *arguments: Any, **more: Any) -> Any:
            created = await create(store, *arguments, **more)
            accepted.set()
            await interrupted.wait()
            return created

        monkeypatch.setattr(Store, "create", create_and_wait)
        command = await swap().begin()
        await accepted.wait()
        command.send_signal(signal.SIGINT)
        await asyncio.sleep(0.1)  # nothing tells that it has the signal; one that comes later cancels it too
        interrupted.set()
        async with asyncio.timeout(WAIT_S):
            await command.communicate()
        assert command.returncode == 130
        jobs = [job["prompt_id"] for job in (await service.get("/jobs"))["jobs"]]
        for prompt_id in jobs:
            assert (await service.ended(prompt_id))["status"] == "CANCELLED"
        engine.release()
        told = await swap().run()
        assert set(jobs) <= {end["prompt_id"] for end in told}
        assert [end["status"] for end in told] == ["SUCCESS"] * 2


async def test_a_service_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    url = dead_url()
    process = await Command("swap", "--image", FACE, FACE, "-o", f"{tmp_path}/out/", "--url", url).begin()
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith(f"faceswap: No answer from {url}")


async def test_what_a_job_waits_for_is_told_by_name(tmp_path: Path) -> None:
    comfyui = dead_url()
    async with running_service(tmp_path / "data", comfyui) as service:
        url, clip = str(service.client.make_url("")), make_clip(tmp_path / "clip.mp4", 3)
        waiting = await Command("swap", "--image", FACE, clip, "-o", tmp_path / "out.mp4", "--url", url).begin()
        assert waiting.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while b"the job waits" not in (line := await waiting.stderr.readline()):
                assert line, "it ended"
        assert line.startswith(f"ComfyUI at {comfyui} does not answer".encode())
        waiting.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S):
            await waiting.communicate()
        assert waiting.returncode == 130


def test_one_process_at_a_time_works_on_a_folder(tmp_path: Path) -> None:
    with Record(tmp_path), pytest.raises(RecordError, match="is running already"):
        Record(tmp_path)
    (tmp_path / RECORD_NAME).write_text('{"of": "another version"}\n')
    with pytest.raises(RecordError, match="cannot be read; remove it"):
        Record(tmp_path)


def test_a_clip_that_is_gone_is_told_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(FaceSwapError, match=r"gone\.mp4 cannot be read: No such file"):
        Clip(str(tmp_path / "gone.mp4"), (FACE,)).fingerprint()


def test_a_folder_that_cannot_be_written_is_told_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / RECORD_NAME).mkdir()
    assert main(["swap", "--image", FACE, FACE, "-o", f"{tmp_path}/", "--url", dead_url()]) == 1
    assert f"{RECORD_NAME}: Is a directory" in capsys.readouterr().err


def test_clips_of_the_same_name_have_results_of_their_own() -> None:
    names = ["a/clip.mp4", "b/clip.mov", "https://example.org/clip.mp4?x=1", "b/clip-2.mp4"]
    clips = [Clip(name, (FACE,)) for name in names]
    assert list(stems(clips).values()) == ["clip", "clip-2", "clip-3", "clip-2-2"]


class _Service:
    """A service whose results are there at once, and arrive together."""

    url = ""

    def __init__(self, downloads: int) -> None:
        self._together = asyncio.Barrier(downloads)

    async def submit(self, video: str, *_: Any, **__: Any) -> str:
        return video

    async def wait(self, prompt_id: str, **_: Any) -> Result:
        return Result(prompt_id, "result.mp4", len(prompt_id), sha256="")

    async def download(self, result: Result, path: Path) -> Path:
        await self._together.wait()
        path.write_text(result.prompt_id)
        return path


async def test_two_results_that_arrive_together_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"somebody's")
    clips = [Clip(f"http://{host}.example/clip.mp4", (FACE,)) for host in "ab"]
    with Record(tmp_path) as record, display(io.StringIO()) as shown:
        batch = Batch(cast(FaceSwap, _Service(2)), "here", record, stems(clips), shown)
        async with asyncio.timeout(WAIT_S):
            await batch.run(clips, 2, lambda _: None)
        assert sorted(record.result(clip).read_text() for clip in clips) == [clip.video for clip in clips]


MANIFEST = """
output = "results"
image = "me.png"
jobs = 3
label = "overnight"

[options]
crf = 18

[[clip]]
video = "clips/*.mp4"

[[clip]]
video = "https://example.org/talk.mov"
image = ["anna.png", "https://example.org/ben.png"]
output = "talk.webm"
options = { start = 2.5, mapping = [{ face = 0, image = 0 }, { face = 1, image = 1 }] }
"""


def test_a_manifest_says_what_a_batch_is(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("b.mp4", "a.mp4", "notes.txt"):
        (tmp_path / "clips" / name).touch()
    file = tmp_path / "batch.toml"
    file.write_text(MANIFEST)
    manifest = read_manifest(file)
    first, second, third = manifest.clips
    assert (manifest.output, manifest.jobs, manifest.url) == (tmp_path / "results", 3, None)
    assert [first.video, second.video] == [str(tmp_path / "clips" / name) for name in ("a.mp4", "b.mp4")]
    assert first.images == (str(tmp_path / "me.png"),)
    assert first.options["crf"] == third.options["crf"] == 18
    assert (first.label, third.label) == ("overnight", "overnight")
    assert third.images == (str(tmp_path / "anna.png"), "https://example.org/ben.png")
    assert third.options["format"] == "webm"
    assert [swap["face"] for swap in third.options["mapping"]] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs = ", "cannot be read"),
        ('colour = "red"', "unknown 'colour'"),
        ('image = "me.png"', "names no clip"),
        ('[[clip]]\nvideo = "clip.mp4"', "'image' of clip 1 must be a text"),
        ('image = "me.png"\n[[clip]]', "'video' of clip 1 must be a text"),
        ('image = "me.png"\n[[clip]]\nvideo = "none/*.mp4"', r"No file is found for none/\*\.mp4"),
        ('image = "me.png"\n[[clip]]\nvideo = "a.mp4"\nface = 1', "clip 1 has an unknown 'face'"),
        ('image = "me.png"\n[[clip]]\nvideo = "a.mp4"\noutput = "../a.mp4"', "allowed is a name in the output folder"),
        ('image = "me.png"\n[[clip]]\nvideo = "a.mp4"\n[clip.options]\ncrf = 99', "'crf' is '99'"),
        ('image = "me.png"\njobs = 0\n[[clip]]\nvideo = "a.mp4"', "'jobs' is 0"),
    ],
)
def test_a_manifest_that_is_wrong_is_told_with_its_reason(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "batch.toml"
    file.write_text(text)
    with pytest.raises((ValueError, BadRequest), match=message):
        read_manifest(file)
