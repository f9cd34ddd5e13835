"""The embedded engine's supervisor, with child processes that behave and that do not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from waiting import WAIT_S, until
from yarl import URL

from faceswap import app, machine
from faceswap.comfy import embedded as embedded_module
from faceswap.comfy.backend import embedded_name
from faceswap.comfy.client import ComfyClient
from faceswap.comfy.embedded import EmbeddedEngine, EngineStartError
from faceswap.config import Settings
from faceswap.files import Files

# A child that keeps the engine's promises: it says where it listens, and ends when its standard input does. A port of
# its own choice is none that the system gives away while nobody listens there.
CHILD = f"""
import argparse, os, socket, sys
sys.path.append({str(Path(__file__).parent)!r})
from ports import free_port
parser = argparse.ArgumentParser()
for option in ("--host", "--data-dir"):
    parser.add_argument(option)
parser.add_argument("--port", type=int)
parser.add_argument("--watch-stdin", action="store_true", required=True)
parser.add_argument("--before", default="")
parser.add_argument("--after", default="")
arguments = parser.parse_args()
exec(arguments.before)
server = socket.create_server((arguments.host, arguments.port or free_port()))
print(f"faceswap engine: listening on http://{{arguments.host}}:{{server.getsockname()[1]}}", flush=True)
exec(arguments.after)
sys.stdin.buffer.read()
"""


def child(data_dir: Path, port: int = 0, before: str = "", after: str = "") -> EmbeddedEngine:
    """Supervise the child above, which runs some Python before and after it listens."""
    return EmbeddedEngine(
        data_dir, port, extra_args=("--before", before, "--after", after), command=(sys.executable, "-c", CHILD)
    )


@asynccontextmanager
async def kept(engine: EmbeddedEngine) -> AsyncIterator[list[URL]]:
    """Run the engine and give the addresses that were ready so far."""
    ready: list[URL] = []
    task = asyncio.create_task(engine.run(ready.append))
    try:
        yield ready
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert engine.pid is None and engine.url is None and engine.state == "stopped"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "FIRST_PAUSE_S", 0.02)


@pytest.mark.parametrize(
    ("cores", "gib", "asked", "count"),
    [
        (1, 64, 8, 1),
        (2, 64, 8, 1),
        (4, 64, 8, 2),
        (16, 128, 8, 8),
        (64, 512, 8, 8),
        (16, 16, 8, 2),  # each may take 5 GiB, and together they leave a quarter
        (16, 4, 8, 1),
        (64, 512, 20, 20),
    ],
)
def test_there_are_as_many_engines_as_the_machine_has_room_for(
    cores: int, gib: int, asked: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "memory_bytes", lambda: gib << 30)
    monkeypatch.setattr(embedded_module, "MOST_ENGINES", asked)
    assert embedded_module.usual_count(with_networks=False) == count
    assert embedded_module.usual_count(with_networks=True) == 1  # each engine would have them in memory


async def test_a_service_starts_as_many_engines_as_are_asked_for_or_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    monkeypatch.setattr(embedded_module, "MOST_ENGINES", 8)

    async def started(**settings: int) -> int:
        return len(await app._embedded_engines(Settings(tmp_path, **settings), Files(tmp_path)))

    assert (await started(), await started(engines=3)) == (4, 3)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "inswapper_128.onnx").touch()
    assert (await started(), await started(engines=3)) == (1, 3)


def test_engines_of_this_machine_have_names_by_number_and_node() -> None:
    names = [embedded_name(1), embedded_name(2), embedded_name(1, "one"), embedded_name(12, "one")]
    assert names == ["embedded", "embedded-2", "embedded:one", "embedded-12:one"]


async def test_it_tells_where_the_engine_listens_and_leaves_no_process(tmp_path: Path) -> None:
    engine = child(tmp_path)
    async with kept(engine) as ready:
        await until(lambda: engine.state == "starting")
        await until(lambda: bool(ready))
        assert engine.url == ready[0] and engine.state == "running" and ready[0].host == "127.0.0.1"
        pid = engine.pid
        assert pid is not None and psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


async def test_an_engine_that_dies_comes_back_on_the_same_port(tmp_path: Path) -> None:
    engine = child(tmp_path)
    async with kept(engine) as ready:
        for restarts in range(3):
            await until(lambda restarts=restarts: len(ready) == restarts + 1)  # type: ignore[misc]
            assert engine.pid is not None and engine.restarts == restarts
            os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: len(ready) == 4)
        assert len(set(ready)) == 1


async def test_another_port_is_taken_when_the_old_one_is_gone(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    engine = child(tmp_path, before=f"import time\nwhile not os.path.exists({str(blocked)!r}): time.sleep(0.01)")
    async with kept(engine) as ready:
        await until(lambda: len(ready) == 1)
        assert engine.pid is not None and ready[0].port is not None
        blocked.unlink()
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.state == "restarting")
        blocker = await asyncio.start_server(lambda *_: None, "127.0.0.1", ready[0].port)
        blocked.touch()
        async with blocker:
            await until(lambda: len(ready) == 2)
        assert ready[1].port != ready[0].port


async def test_an_engine_that_does_not_start_is_told_with_what_it_wrote(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = child(tmp_path, before="sys.exit('no models')")
    with caplog.at_level(logging.INFO), pytest.raises(EngineStartError, match="did not start"):
        await engine.start(WAIT_S)
    assert "engine: no models" in [record.getMessage() for record in caplog.records]
    assert engine.pid is None


async def test_an_engine_that_never_listens_is_given_up(tmp_path: Path) -> None:
    engine = child(tmp_path, before="import time; time.sleep(60)")
    with pytest.raises(EngineStartError, match="did not listen within"):
        await engine.start(0.3)
    assert engine.pid is None


async def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError):
        await EmbeddedEngine(tmp_path, command=(str(tmp_path / "none"),)).start()


async def test_an_engine_that_keeps_failing_is_tried_again_with_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    rest = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await rest(0)

    monkeypatch.setattr(embedded_module.asyncio, "sleep", note)
    monkeypatch.setattr(embedded_module, "STABLE_AFTER_S", 0.0)  # however long an engine takes not to listen
    engine = EmbeddedEngine(tmp_path, command=("/bin/false",))
    task = asyncio.create_task(engine.run(lambda url: None))
    while len(pauses) < 11:
        await rest(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pauses[:4] == [0.02, 0.04, 0.08, 0.16] and max(pauses) == 10.0
    assert engine.restarts >= 11


async def test_an_engine_that_will_not_stop_is_killed_with_its_own_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_module, "STOP_TIMEOUT_S", 0.2)
    stubborn = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "worker = subprocess.Popen(['sleep', '60']); print('worker', worker.pid, flush=True); time.sleep(60)"
    )
    engine = child(tmp_path, after=stubborn)
    await engine.start(WAIT_S)
    assert engine.pid is not None
    process = psutil.Process(engine.pid)
    await until(lambda: bool(process.children()))
    family = [process, *process.children()]
    await engine.stop()
    await until(lambda: not any(member.is_running() for member in family))


async def test_workers_an_engine_leaves_behind_do_not_hold_its_restart_up(tmp_path: Path) -> None:
    engine = child(tmp_path, after="import subprocess; subprocess.Popen(['sleep', '60'])")
    async with kept(engine) as ready:
        await until(lambda: len(ready) == 1)
        assert engine.pid is not None
        process = psutil.Process(engine.pid)
        await until(lambda: bool(process.children()))
        (worker,) = process.children()
        process.kill()
        await until(lambda: len(ready) == 2)
        await until(lambda: not worker.is_running())


async def test_lines_of_any_length_reach_the_log_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = child(tmp_path, after=r"sys.stderr.buffer.write(b'x' * 300_000 + b'\nlast \xff\n'); sys.stderr.flush()")
    with caplog.at_level(logging.INFO):
        async with kept(engine):
            await until(lambda: any("last" in record.getMessage() for record in caplog.records))
    lines = [record.getMessage() for record in caplog.records]
    assert "engine: " + "x" * 1000 in lines and "engine: last \ufffd" in lines
    assert max(map(len, lines)) < 1100


async def test_the_child_does_not_inherit_our_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FACESWAP_WEBHOOK_SECRET", "hush")
    engine = child(tmp_path, after="print('seen', [k for k in os.environ if k.startswith('FACESWAP')], flush=True)")
    with caplog.at_level(logging.INFO):
        async with kept(engine):
            await until(lambda: any("seen" in record.getMessage() for record in caplog.records))
    assert "engine: seen ['FACESWAP_ENGINE_TOKEN']" in [record.getMessage() for record in caplog.records]


async def test_what_on_ready_raises_ends_the_run_and_the_engine(tmp_path: Path) -> None:
    engine = child(tmp_path)
    pids = []

    async def refuse(url: URL) -> None:
        pids.append(engine.pid)
        raise KeyError("a bug of ours")

    with pytest.raises(KeyError):
        await engine.run(refuse)
    assert engine.state == "stopped" and not psutil.pid_exists(pids[0])


async def test_the_real_engine_answers_and_comes_back_after_a_kill(tmp_path: Path) -> None:
    engine = EmbeddedEngine(tmp_path)
    async with kept(engine) as ready, aiohttp.ClientSession() as session:
        for starts in (1, 2):
            await until(lambda starts=starts: len(ready) == starts)  # type: ignore[misc]
            assert (await ComfyClient(ready[-1], session, engine.headers).queue()).running == ()
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: len(ready) == 3)


KEEPER = """
import asyncio, pathlib, sys
from faceswap.comfy.embedded import EmbeddedEngine
engine = EmbeddedEngine(pathlib.Path(sys.argv[1]))
asyncio.run(engine.run(lambda url: print(engine.pid, flush=True)))
"""


def test_the_real_engine_does_not_outlive_a_service_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        engine = psutil.Process(int(keeper.stdout.readline()))
        assert engine.is_running()
        keeper.kill()
    try:
        engine.wait(WAIT_S)
    finally:
        if engine.is_running():
            engine.kill()
