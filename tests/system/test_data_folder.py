"""The data folder: a database that is not there or cannot be used, a disk that fills, and who may read the files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from processes import Engine, Service, at_rest, dead_url, eventually, files_in
from talk import Answer, Api, assert_problem, half_an_upload
from waiting import WAIT_S

MIB = 1024 * 1024
DISK_MIB = 64


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a disk of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def is_small(folder: Path) -> bool:
    return shutil.disk_usage(folder).total <= DISK_MIB * MIB


@asynccontextmanager
async def full(service: Service) -> AsyncIterator[None]:
    """Fill the disk meanwhile, or, on a shared one, let no file of the service grow."""
    if is_small(service.data_dir):
        filler = service.data_dir.parent / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
        yield
        filler.unlink()
    else:
        hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (0, hard))
        yield
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))


def unavailable(answer: Answer) -> bool:
    """Tell whether an answer says that the disk is full, or the database unwritable, and when to try again."""
    code = answer.json["code"]
    assert code in ("disk_full", "disk_low", "database_unavailable"), answer.body
    assert_problem(answer, 503, code)
    return int(answer.headers["Retry-After"]) > 0


async def test_on_a_full_disk_every_call_that_writes_is_503_and_nothing_is_lost(
    small_disk: Path, api_of: Callable[[Service], Api]
) -> None:
    async with Service(small_disk, dead_url()) as service:
        api = api_of(service)
        prompt_id, other = await api.submit(), await api.submit()
        before = service.files()
        async with full(service):
            for _ in range(40):  # what the database had ready is used up by then
                refused = await api.post(f"/jobs/{prompt_id}/cancel")
                if refused.status != 503:
                    refused = await api.post(f"/jobs/{prompt_id}/retry")
                if refused.status == 503:
                    break
            assert unavailable(refused)
            assert unavailable(await api.swap())
            assert unavailable(await api.call("DELETE", f"/jobs/{other}"))
            async with api.session.ws_connect(f"{api.url}/face-swap-ws") as socket:
                await socket.send_json({"action": "subscribe", "prompt_id": other})
                assert (await socket.receive_json())["event"] == "queued"
                await socket.send_json({"action": "cancel"})
                event = await socket.receive_json()
                while event["event"] == "status":  # on a slow machine it was told of the engine that does not answer
                    event = await socket.receive_json()
                assert (event["event"], event["data"]["status"]) == ("error", 503)
            assert (await api.get(f"/status/{other}")).json["status"] == "QUEUED"
        assert service.files() == before

        async def deleted() -> bool:
            return (await api.call("DELETE", f"/jobs/{other}")).status == 204

        await eventually(deleted)
        await api.submit()
        assert "Traceback" not in service.log()


async def test_uploads_at_once_leave_the_room_that_is_to_be_left(
    small_disk: Path, api_of: Callable[[Service], Api]
) -> None:
    size, room_mib = 4 * MIB, 18
    mark_mib = shutil.disk_usage(small_disk).free // MIB - room_mib
    url = dead_url()
    async with Service(small_disk, url, min_free_mb=mark_mib, max_upload_mb=5) as service:
        api = api_of(service)
        go_on = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n' + bytes(1000)
            await go_on.wait()
            yield bytes(size - 2000)

        async def upload() -> int:
            headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(size)}
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with api.session.post(f"{api.url}/face-swap", data=body(), headers=headers) as answer:
                    return answer.status
            return 400  # cut off when the others have been counted

        uploads = [asyncio.create_task(upload()) for _ in range(12)]

        def refused() -> int:
            return sum(task.done() and task.result() == 503 for task in uploads)

        async def all_have_begun() -> bool:
            taken_in = {name.split("/")[1] for name in service.files() if name.endswith("video.part")}
            return refused() + len(taken_in) == len(uploads)

        await eventually(all_have_begun)
        assert len(uploads) - refused() <= room_mib * MIB // size
        assert refused() < len(uploads)
        for task in uploads:
            task.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)

        async def room_is_free_again() -> bool:
            return (await api.swap(video=bytes(size))).status == 415  # taken in whole, and found to be no video

        await eventually(room_is_free_again)


async def test_an_empty_database_at_the_start_erases_nothing(tmp_path: Path, api_of: Callable[[Service], Api]) -> None:
    async with Engine(tmp_path, paint=True) as engine, Service(tmp_path, engine.url) as service:
        done = await api_of(service).finished(output_name="precious")
        before = await at_rest(service.files)
        assert "outputs/precious.mp4" in before
        await service.stop()
        for file in service.data_dir.glob("faceswap.db*"):
            file.unlink()
        await service.start()
        assert (await api_of(service).get(done["result"])).status == 404
        lost = [name for name in service.files() if name.startswith("lost+found/")]
        assert [name.split("/", 2)[2] for name in lost] == before
        assert service.log().count("lost+found") == 1


async def test_an_upload_that_a_kill_cut_off_is_gone_after_the_next_start(
    tmp_path: Path, api_of: Callable[[Service], Api]
) -> None:
    async with Service(tmp_path, dead_url()) as service:
        api = api_of(service)
        _, writer = await api.raw()
        writer.write(half_an_upload(api.media))

        async def has_begun() -> bool:
            return any(name.endswith("video.part") for name in service.files())

        await eventually(has_begun)
        await service.kill()
        writer.close()
        assert service.files() != []
        await service.start()
        assert service.files() == []
        assert "lost+found" not in service.log()


def garbage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def truncated(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE a (b); CREATE TABLE c (d); CREATE TABLE e (f)")
    os.truncate(path, path.stat().st_size // 2)


def folder(path: Path) -> None:
    path.mkdir()


def locked(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    return database


async def start(data_dir: Path) -> tuple[int, str]:
    """Return the exit status and the output of a service that cannot start."""
    command = ["-m", "faceswap", "serve", "--port", "0", "--data-dir", str(data_dir), "--comfyui-url", "http://[::1]:9"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(WAIT_S):
        _, printed = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


@pytest.mark.parametrize("broken", [garbage, truncated, folder, locked])
async def test_a_database_that_cannot_be_used_is_told_in_one_sentence(
    tmp_path: Path, broken: Callable[[Path], sqlite3.Connection | None]
) -> None:
    held = broken(tmp_path / "faceswap.db")
    status, printed = await start(tmp_path)
    if held is not None:
        held.close()
    assert status == 1
    assert printed.startswith(f"faceswap: the database '{tmp_path}/faceswap.db' cannot be used: ")
    assert printed.count("\n") == 1


async def test_a_full_disk_at_the_start_is_told_in_one_sentence(small_disk: Path) -> None:
    if is_small(small_disk):
        with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        status, printed = await start(small_disk)
    else:
        command = f"ulimit -f 0; exec {sys.executable} -m faceswap serve --port 0 --data-dir {small_disk}"
        process = await asyncio.create_subprocess_exec("bash", "-c", command, stderr=asyncio.subprocess.PIPE)
        printed = (await process.communicate())[1].decode()
        status = process.returncode or 0
    assert status == 1
    assert printed.startswith("faceswap: ")
    assert "cannot be used" in printed
    assert printed.count("\n") == 1


async def test_in_a_folder_that_others_may_look_into_the_files_are_the_owners_alone(
    tmp_path: Path, api_of: Callable[[Service], Api]
) -> None:
    async with Engine(tmp_path, paint=True) as engine, Service(tmp_path, engine.url) as service:
        await service.stop()
        service.data_dir.chmod(0o755)
        (service.data_dir / "faceswap.db").chmod(0o644)
        await service.start()
        await api_of(service).finished()
        await at_rest(lambda: files_in(service.data_dir))
        names = files_in(service.data_dir)
        modes = {name: stat.S_IMODE((service.data_dir / name).stat().st_mode) for name in names}
        assert {"faceswap.db", "faceswap.db-wal", "faceswap.db-shm", "lock"} < modes.keys()
        assert set(modes.values()) == {0o600}, modes
