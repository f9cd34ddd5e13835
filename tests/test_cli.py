"""The command line as a user meets it: real processes, the real service, the real engine."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import av
import psutil
import pytest
from clips import make_clip
from processes import dead_url
from waiting import WAIT_S

from faceswap import __version__, blocking, demo, samples
from faceswap.cli import main
from faceswap.cli.display import display
from faceswap.client import FaceSwap

COMMAND = [sys.executable, "-m", "faceswap"]
FACE = str(samples.FACE)


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    samples.make_clip(path)
    return str(path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a service with its embedded engine, as `faceswap serve` prints it."""
    folder = tmp_path_factory.mktemp("service")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--data-dir", str(folder / "data")], stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        assert process.stdout is not None
        found = re.fullmatch(
            r"faceswap: listening on (http://127\.0\.0\.1:\d+) \(engine: embedded\)\n",
            process.stdout.readline().decode(),
        )
        assert found, (folder / "log").read_text()
        yield found[1]
        process.terminate()
        assert process.wait(WAIT_S) == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PROGRESS = [
    {"percentage": n / 2, "current": n * 3, "total": 600, "fps": 41.5, "eta_seconds": 100 - n / 2} for n in range(201)
]


def test_on_a_terminal_there_is_a_bar_that_is_drawn_again_in_place_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with display(terminal) as shown, shown.task("clip.mp4") as task:
        task.sent(1_000_000, 4_000_000)
        shown.line("a line that stays [bold]as it is[/bold]")
        task.step("Executing: ReActor")
        for progress in PROGRESS[:101]:
            task.progress(progress)
        shown.count(3, 1, 20)
        shown.line("another")
    text = terminal.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    drawn = ("clip.mp4", "Uploading  25%", "MB/s", "50.0%  300/600 frames   41.5 fps  0:50 left", "4/20, 1 failed")
    assert [words for words in drawn if words not in plain] == []
    assert "\ra line that stays [bold]as it is[/bold]\n" in plain
    assert text.endswith("\x1b[2K"), "the bars are still there"


def test_without_a_terminal_every_tenth_of_the_job_is_one_line() -> None:
    log = io.StringIO()
    with display(log) as shown, shown.task("") as task:
        task.sent(1, 2)
        for progress in PROGRESS:
            task.progress(progress)
        shown.count(1, 0, 2)
    told = [float(line.split("%")[0]) for line in log.getvalue().splitlines()]
    assert told == list(range(0, 101, 10))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"faceswap {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "nowhere.jpg"], "The image nowhere.jpg is not there"),
        (["--video", "nowhere.mp4"], "The video nowhere.mp4 is not there"),
        (["-o", "/dev/null"], "The output /dev/null is there already and is not a file"),
        (["-o", "nowhere/out.mp4"], "The folder of the output nowhere/out.mp4 is not there"),
        (["--option", "colour=red"], "Unknown option 'colour'"),
        (["--option", "crf=99"], "Option 'crf' is '99'; allowed is a whole number from 0 to 51"),
        (["--option", "face_index=first"], "Option 'face_index' is 'first'"),
        (["--option", "crf"], "'crf' is not of the form name=value"),
        (["-o", "x.gif", "--option", "format=webm"], "The output x.gif asks for the format gif, the option for webm"),
        ([FACE, "-o", "out/"], f"The video {FACE} is named twice"),
        (["--jobs", "0"], "--jobs"),
        (["--picture", "x"], "No such option"),
    ],
)
def test_wrong_usage_of_swap_is_told_before_anything_is_started(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(psutil.Process().children())
    assert main(["swap", "--image", FACE, "--video", FACE, "-o", "out.mp4", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not set(psutil.Process().children()) - before


def test_a_wrong_setting_stops_serve_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESWAP_QUEUE_LIMIT", "many")
    assert main(["serve", "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "FACESWAP_QUEUE_LIMIT='many'" in line


def test_swap_alone_leaves_the_result_and_nothing_else(clip: str, tmp_path: Path) -> None:
    temporary, output = tmp_path / "tmp", tmp_path / "out.mp4"
    temporary.mkdir()
    output.write_bytes(b"an older result")
    ended = subprocess.run(
        [*COMMAND, "swap", "--image", FACE, "--video", clip, "-o", str(output), "--option", "frame_rate=1"],
        env={**os.environ, "TMPDIR": str(temporary), "FACESWAP_COMFYUI_URLS": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ended.returncode == 0, ended.stderr
    assert frames(output) == samples.FRAMES // 25
    assert "100.0%  6/6 frames" in ended.stderr
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "tmp"]
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(temporary) in str(process.info)]


def test_a_private_service_that_does_not_start_is_told_with_its_own_reason(clip: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "swap", "--image", FACE, "--video", clip, "-o", str(tmp_path / "out.mp4")],
        env={**os.environ, "FACESWAP_QUEUE_LIMIT": "many"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("faceswap: The service did not start.\nfaceswap: FACESWAP_QUEUE_LIMIT='many'")


def test_a_failed_job_is_told_with_its_reason(service: str, tmp_path: Path) -> None:
    faceless, output = make_clip(tmp_path / "faceless.mp4"), tmp_path / "out.mp4"
    ended = subprocess.run(
        [*COMMAND, "swap", "--image", FACE, "--video", str(faceless), "-o", str(output), "--url", service],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ended.returncode == 1
    assert re.search(r"^faceswap: .*\bface\b.*", ended.stderr, re.MULTILINE), ended.stderr
    assert not output.exists()


def test_a_service_that_is_not_there_is_told(clip: str, tmp_path: Path) -> None:
    url = dead_url()
    ended = subprocess.run(
        [*COMMAND, "swap", "--image", FACE, "--video", clip, "-o", str(tmp_path / "out.mp4"), "--url", url],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith(f"faceswap: No answer from {url}")


def interrupt(words: list[str], clip: str, output: Path, *, times: int, **options: Any) -> tuple[int, str]:
    """Run `swap`, press Ctrl-C once the job makes progress, again once that was understood; exit status and stderr."""
    told = ""
    with subprocess.Popen(
        [*COMMAND, "swap", "--image", FACE, "--video", clip, "-o", str(output), *words],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the suite in the background has it ignore Ctrl-C, and its children with it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        **options,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            told += line
            if times and ("frames" in line or "Cancelling" in line):
                process.send_signal(signal.SIGINT)
                times -= 1
        return process.wait(WAIT_S), told


async def test_an_interrupt_cancels_the_job(service: str, clip: str, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    code, told = interrupt(["--url", service], clip, output, times=1)
    assert code == 130, told
    assert "Cancelling the job" in told
    assert not output.exists()
    async with aiohttp.ClientSession() as session, session.get(f"{service}/jobs?limit=1") as response:
        (newest,) = (await response.json())["jobs"]
        async with FaceSwap(service, session=session) as client:
            events = [event.type async for event in client.events(newest["prompt_id"])]
            assert events[-1] == "cancelled"
            assert (await client.status(newest["prompt_id"]))["status"] == "CANCELLED"


def test_a_second_interrupt_quits_at_once_and_leaves_nothing(clip: str, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    code, told = interrupt([], clip, tmp_path / "out.mp4", times=2, env={**os.environ, "TMPDIR": str(temporary)})
    assert code == 130, told
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []


def test_a_batch_without_a_service_that_is_killed_leaves_no_process_and_goes_on_with_its_own(
    clip: str, tmp_path: Path
) -> None:
    command = [*COMMAND, "swap", "--image", FACE, clip, "-o", f"{tmp_path}/out/", "--option", "frame_rate=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "queued" in process.stderr.readline()
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.kill()
    assert (tmp_path / "out" / ".faceswap-service" / "faceswap.db").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert again.returncode == 0, again.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".faceswap-batch.jsonl", "clip.mp4"]
    _, alive = psutil.wait_procs(started, timeout=WAIT_S)
    assert alive == []


def test_an_engine_alone_speaks_until_it_is_stopped(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "engine", "--port", "0", "--data-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("faceswap engine: listening on http://127.0.0.1:")
        process.terminate()
        assert process.wait(WAIT_S) in (0, -signal.SIGTERM)


def test_the_demo_leaves_two_videos_and_a_picture_and_tells_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out)])
    monkeypatch.setattr(samples, "FRAMES", 20)
    assert demo.main() == 0
    *paths, took = capsys.readouterr().out.splitlines()
    assert paths == [str(out / name) for name in ("source.mp4", "result.mp4", "before_after.png")]
    assert re.fullmatch(r"Done in \d+\.\d s\.", took)
    assert frames(out / "source.mp4") == frames(out / "result.mp4") == 20
    assert frames(out / "before_after.png") == 1


def ask(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command in this process; returns its exit status and what it printed."""
    status = main(words)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_jobs_are_listed_watched_cancelled_and_retried(
    service: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESWAP_URL", service)
    monkeypatch.setattr("faceswap.client.service.RESUMABLE_BYTES", 1000)  # so that the clip goes up by tus
    with blocking.FaceSwap(service) as client:
        prompt_id = client.submit(clip, FACE, label="from the tests", options={"frame_rate": 1, "source_face_index": 0})
    saved = tmp_path / "watched.mp4"
    status, out, err = ask(["watch", prompt_id, "-o", str(saved), "--json"], capsys)
    assert (status, frames(saved)) == (0, samples.FRAMES // 25)
    assert json.loads(out)["path"] == str(saved)
    assert "100.0%  6/6 frames" in err

    _, out, _ = ask(["jobs", "--label", "from the tests"], capsys)
    head, row = out.splitlines()
    assert head.split() == ["ID", "STATUS", "DONE", "NAME", "STEP"]
    assert row.split()[:3] == [prompt_id, "SUCCESS", "100%"]
    _, out, _ = ask(["jobs", "--status", "success", "--limit", "1", "--json"], capsys)
    assert json.loads(out)["status"] == "SUCCESS"
    assert ask(["jobs", "--status", "lost"], capsys)[0] == 2

    status, _, err = ask(["cancel", prompt_id], capsys)
    assert (status, err.count("\n")) == (1, 1)
    assert ask(["retry", prompt_id], capsys)[0] == 1
    status, _, err = ask(["watch", "no-such-job"], capsys)
    assert (status, err.startswith("faceswap: ")) == (1, True)


def test_faces_are_shown_with_the_numbers_that_options_mean(
    service: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = ask(["faces", FACE, "--url", service, "--thumbnails", str(tmp_path / "faces")], capsys)
    head, row = out.splitlines()
    assert (status, head.split(), row.split()[0]) == (0, ["FACE", "AT", "SIZE", "SURE"], "0")
    assert frames(tmp_path / "faces" / "face-0.jpg") == 1
    status, out, _ = ask(["faces", clip, "--at", "2", "--url", service, "--json"], capsys)
    assert (status, json.loads(out)["at"], len(json.loads(out)["faces"])) == (0, 2.0, 1)


def test_a_manifest_is_run_and_the_name_of_a_result_says_its_format(service: str, clip: str, tmp_path: Path) -> None:
    manifest = tmp_path / "batch.toml"
    shared, options = f'url = "{service}"\nimage = "{FACE}"', "options = { at = 1 }"
    manifest.write_text(f'{shared}\n[[clip]]\nvideo = "{clip}"\noutput = "trial.jpg"\n{options}\n')
    assert main(["run", str(manifest)]) == 0
    with av.open(str(tmp_path / "out" / "trial.jpg")) as picture:
        assert picture.streams.video[0].codec_context.name == "mjpeg"
    refused = ["swap", "--image", FACE, clip, "-o", str(tmp_path / "x.png"), "--url", service]
    assert main(refused) == 2, "a whole clip is no picture"
