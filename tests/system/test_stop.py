"""The end of the service, by a signal or because it cannot start: always soon, and with a reason."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSCloseCode
from processes import Service, dead_url, eventually, service_and_engine
from talk import UPGRADE, Api, frame_head, half_an_upload
from waiting import WAIT_S

STOPS_WITHIN_S = 45.0
"""Ten seconds are promised; aiohttp's own bound for a peer that never answers is sixty."""


async def test_streams_get_a_last_word_and_jobs_go_on_after_the_next_start(
    tmp_path: Path, api_of: Callable[[Service], Api]
) -> None:
    async with service_and_engine(tmp_path, {}) as (service, engine):
        await engine.hold()
        api = api_of(service)
        prompt_id = await api.submit()
        async with (
            api.session.get(f"{api.url}/events/{prompt_id}") as stream,
            api.session.ws_connect(f"{api.url}/face-swap-ws") as watching,
            api.session.ws_connect(f"{api.url}/face-swap-ws") as silent,
            api.session.ws_connect(f"{api.url}/face-swap-ws") as uploading,
        ):
            await watching.send_json({"action": "subscribe", "prompt_id": prompt_id})
            await uploading.send_json({"video": {"size": 1000}, "image": {"size": 1000}})
            await stream.content.readuntil(b"event: executing")
            await watching.receive_str()
            stopping = asyncio.create_task(service.stop())
            async with asyncio.timeout(STOPS_WITHIN_S):
                sockets = (watching, silent, uploading)
                rest, *codes = await asyncio.gather(stream.content.read(), *map(close_code, sockets))
                assert await stopping == 0
        assert rest.rstrip().rsplit(b"\n", 1)[-1].startswith(b": the service is stopping")
        assert codes == [WSCloseCode.GOING_AWAY] * 3
        assert "Traceback" not in service.log()
        engine.release()
        status = await api_of(await service.start()).done(prompt_id)
        assert status["attempts"] == 1
        kept = [name for name in service.files() if name.startswith("inputs/")]
        assert {name.split("/")[1] for name in kept} == {prompt_id}


async def close_code(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read a socket to its end."""
    async for _ in socket:
        pass
    return socket.close_code


async def test_a_wait_for_a_status_is_answered_when_the_service_stops(
    folder_service: Callable[..., Service], api_of: Callable[[Service], Api]
) -> None:
    async with folder_service() as service:
        api = api_of(service)
        prompt_id = await api.submit()
        async with api.session.get(f"{api.url}/events/{prompt_id}") as stream:
            await stream.content.readuntil(b"\n\n")
            waiting = asyncio.create_task(api.get(f"/status/{prompt_id}?wait=60"))
            await asyncio.gather(api.get("/health"), api.get("/health"))
            assert await service.stop() == 0
            assert (await waiting).json["status"] == "QUEUED"


async def test_peers_that_never_answer_do_not_hold_up_the_stop(
    folder_service: Callable[..., Service], api_of: Callable[[Service], Api]
) -> None:
    async with folder_service() as service:
        api = api_of(service)
        subscribe = json.dumps({"action": "subscribe", "prompt_id": await api.submit()}).encode()
        before = service.files()
        watcher, watching = await api.raw()
        watching.write(UPGRADE + frame_head(aiohttp.WSMsgType.TEXT, len(subscribe)) + subscribe)
        await watcher.readuntil(b"queued")
        _, uploading = await api.raw()
        uploading.write(half_an_upload(api.media))

        async def is_uploading() -> bool:
            return service.files() != before

        await eventually(is_uploading)
        async with asyncio.timeout(STOPS_WITHIN_S):
            assert await service.stop() == 0
        for writer in (watching, uploading):
            writer.close()
        await service.start()
        assert service.files() == before


async def test_other_hosts_are_let_in_on_purpose(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faceswap", "serve", "--host", "0.0.0.0", "--port", "0", "--allow-anonymous"),
        *("--data-dir", str(tmp_path), "--comfyui-url", "http://127.0.0.1:1"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    process.terminate()
    assert re.fullmatch(r"faceswap: listening on http://0\.0\.0\.0:\d+ \(engine: 1 ComfyUI\)\n", line)
    async with asyncio.timeout(STOPS_WITHIN_S):
        assert await process.wait() == 0


async def failed_start(*arguments: str, **settings: str) -> tuple[int, str]:
    """Return the exit status and the one line of a service that does not start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faceswap", "serve", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"FACESWAP_PORT": "0", **{f"FACESWAP_{name}": value for name, value in settings.items()}},
    )
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert out == b""
    lines = err.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("faceswap: "), err
    assert process.returncode is not None
    return process.returncode, lines[0]


async def test_a_second_service_on_the_same_data_is_refused(idle_process: Service, idle: Api) -> None:
    status, line = await failed_start("--data-dir", str(idle_process.data_dir))
    assert (status, "another faceswap already uses" in line) == (1, True)
    assert (await idle.get("/livez")).status == 200


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("PORT", "70000", "0 to 65535"),
        ("COMFYUI_URLS", "ftp://x", "http:// or https://"),
        ("MAX_UPLOAD_MB", "much", "whole number"),
        ("URL_ALLOW", "10.0.0.1/8", "CIDR"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("WORKFLOW", "none-of-this-name", "FaceSwap-Reactor-API"),
        ("WORKFLOW_DIR", "/nowhere", "a folder"),
    ],
)
async def test_a_wrong_setting_is_told_with_variable_value_and_what_is_allowed(
    tmp_path: Path, variable: str, value: str, allowed: str
) -> None:
    status, line = await failed_start("--data-dir", str(tmp_path), **{variable: value})
    assert status == 2
    assert f"FACESWAP_{variable}=" in line and value in line and allowed in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
async def test_other_hosts_are_not_let_in_by_accident(tmp_path: Path, host: str) -> None:
    status, line = await failed_start("--host", host, "--data-dir", str(tmp_path))
    assert status == 2
    assert "FACESWAP_HOST" in line and host in line and "--allow-anonymous" in line


async def test_a_port_in_use_is_told(tmp_path: Path, idle_process: Service) -> None:
    port = idle_process.url.rsplit(":", 1)[1]
    status, line = await failed_start("--port", port, "--data-dir", str(tmp_path), "--comfyui-url", dead_url())
    assert (status, f"127.0.0.1:{port}" in line) == (1, True)


async def test_a_newer_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "faceswap.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 999")
    before = path.read_bytes()
    status, line = await failed_start("--data-dir", str(tmp_path))
    assert (status, "999" in line, "upgrade" in line) == (1, True, True)
    assert path.read_bytes() == before


async def test_a_data_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, line = await failed_start("--data-dir", str(tmp_path / "file"))
    assert (status, "FACESWAP_DATA_DIR=" in line) == (1, True)
