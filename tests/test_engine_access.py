"""Access to the engine: nobody gets in without its token, and no page whose host was pointed at this machine."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from engine_rig import FACE
from waiting import WAIT_S
from yarl import URL

from faceswap.comfy.backend import EMBEDDED, Backend, BackendPool
from faceswap.comfy.client import ComfyClient
from faceswap.comfy.embedded import EmbeddedEngine
from faceswap.engine.server import ROUTES, create_app

NOBODY = 65534
TOKEN = "a secret"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
PATHS = sorted({(route.method, prefix + route.path) for route in ROUTES for prefix in ("", "/api")})
CALLS = [*PATHS, ("POST", "/faults"), ("GET", "/nothing"), ("DELETE", "/"), ("OPTIONS", "/queue")]

# What another user of the machine can try; who may become another one does. Reads calls, answers what came back.
INTRUDER = f"""
import encodings.idna, http.client, json, os, sys
if os.geteuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
assert os.geteuid() != 0
given = json.load(sys.stdin)
found = []
for method, path, headers in given["calls"]:
    connection = http.client.HTTPConnection("127.0.0.1", given["port"], timeout={WAIT_S})
    connection.request(method, path, headers=headers)
    found.append(connection.getresponse().status)
    connection.close()
seen = []
for path in given["files"]:
    try:
        seen.append(open(path, "rb").read().decode("latin-1"))
    except OSError:
        seen.append(None)
print(json.dumps([found, seen]))
"""


def as_another_user(port: int, calls: Sequence[Any], files: Sequence[str]) -> tuple[list[int], list[str | None]]:
    """Return statuses of calls and contents of files as another user gets them; as this one without another."""
    given = json.dumps({"port": port, "calls": calls, "files": files})
    ended = subprocess.run([sys.executable, "-c", INTRUDER], input=given, capture_output=True, text=True, check=True)
    found, seen = json.loads(ended.stdout)
    return found, seen


@asynccontextmanager
async def embedded(data: Path) -> AsyncIterator[tuple[EmbeddedEngine, URL]]:
    """Run a real engine as the service runs it, with every route."""
    keeper = EmbeddedEngine(data, extra_args=("--faults", "{}"))
    try:
        yield keeper, await keeper.start()
    finally:
        await keeper.stop()


async def test_no_route_answers_anybody_who_has_no_token(tmp_path: Path) -> None:
    async with embedded(tmp_path / "engine") as (keeper, url), aiohttp.ClientSession() as session:
        await ComfyClient(url, session, keeper.headers).upload(FACE, "face.png", "job")
        assert url.port is not None
        token = keeper.headers["Authorization"].partition(" ")[2]
        tries = [
            {},
            UPGRADE,
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer \xe9"},
            {"Authorization": token},
            {"Authorization": f"Basic {token}"},
            {"Authorization": f"Bearer {token[:-1]}"},
        ]
        calls = [(method, path, headers) for method, path in CALLS for headers in tries]
        process = f"/proc/{keeper.pid}"
        stored = str(tmp_path / "engine" / "input" / "job" / "face.png")
        files = [f"{process}/cmdline", f"{process}/environ", stored]
        found, (command_line, environ, face) = as_another_user(url.port, calls, files)
        assert set(found) == {401}
        assert os.geteuid() != 0 or (environ, face) == (None, None)
        assert command_line is not None and "faceswap.engine" in command_line and token not in command_line
        for method, path in PATHS:
            async with session.request(method, url.with_path(path), headers=keeper.headers) as response:
                assert response.status not in (401, 403), path


async def test_health_does_not_tell_where_the_embedded_engine_listens() -> None:
    async with aiohttp.ClientSession() as session:
        client = ComfyClient(URL("http://127.0.0.1:54321"), session)
        assert "54321" not in json.dumps(Backend(BackendPool(), EMBEDDED, client, "me").describe())


async def test_files_of_the_engine_are_its_users_only(tmp_path: Path) -> None:
    data = tmp_path / "engine"
    async with embedded(data) as (keeper, url), aiohttp.ClientSession() as session:
        await ComfyClient(url, session, keeper.headers).upload(FACE, "face.png", "job")
        paths = [data, *data.rglob("*")]
        assert data / "input" / "job" / "face.png" in paths
        open_to_others = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
        assert open_to_others == []


async def test_the_engines_own_children_do_not_inherit_its_token(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from faceswap.engine import __main__ as engine\n"
        "async def serve(options):\n"
        "    print(options.token, 'FACESWAP_ENGINE_TOKEN' in os.environ)\n"
        "engine.serve = serve\n"
        "engine.main([])\n"
    )
    environment = {**os.environ, "FACESWAP_ENGINE_TOKEN": "mine"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["mine", "False"]


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_rebound_host_is_refused_with_and_without_a_token(tmp_path: Path, token: str | None) -> None:
    given = {"Authorization": f"Bearer {token}"} if token else {}
    app = create_app(tmp_path, token=token)
    async with TestClient(TestServer(app)) as client:
        for host, status in {
            "evil.example": 403,
            "evil.example:80": 403,
            "127.0.0.1.evil.example": 403,
            "localhost.evil.example": 403,
            "[": 403,
            "": 403,
            "localhost": 200,
            "127.0.0.1:1": 200,
            "[::1]:8188": 200,
        }.items():
            async with client.get("/queue", headers={"Host": host, **given}) as response:
                assert response.status == status, host


async def test_a_call_that_names_no_host_is_refused(tmp_path: Path) -> None:
    async with TestClient(TestServer(create_app(tmp_path))) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b"GET /queue HTTP/1.0\r\n\r\n")
        assert b" 403 " in await reader.readline()
        writer.close()


def alone(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Run `faceswap engine` as a developer starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "faceswap", "engine", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def status_of(line: str, headers: dict[str, str]) -> int:
    """Return the status of `/queue` at the address of a listening line."""
    url = URL(line.split()[-1])
    assert url.host is not None
    connection = http.client.HTTPConnection(url.host, url.port, timeout=WAIT_S)
    connection.request("GET", "/queue", headers=headers)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_engine_alone_prints_how_to_call_it(tmp_path: Path) -> None:
    with alone("--data-dir", str(tmp_path)) as process:
        assert process.stdout is not None
        listening, how = process.stdout.readline(), process.stdout.readline()
        header = how.rpartition("header ")[2].strip()
        name, _, value = header.partition(": ")
        assert (status_of(listening, {}), status_of(listening, {name: value})) == (401, 200)
        process.terminate()


def test_an_engine_alone_takes_a_given_token_and_does_not_print_it(tmp_path: Path) -> None:
    with alone("--data-dir", str(tmp_path), FACESWAP_ENGINE_TOKEN=TOKEN) as process:
        assert process.stdout is not None
        listening = process.stdout.readline()
        given = {"Authorization": f"bearer {TOKEN}"}
        assert (status_of(listening, {}), status_of(listening, given)) == (401, 200)
        process.terminate()
        said = listening + "".join(process.communicate())
    assert TOKEN not in said and "Authorization" not in said


def test_an_engine_alone_needs_no_token_where_it_is_told_so(tmp_path: Path) -> None:
    with alone("--data-dir", str(tmp_path), "--no-token") as process:
        assert process.stdout is not None
        assert status_of(process.stdout.readline(), {}) == 200
        process.terminate()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_engine_without_token_does_not_leave_the_machine(tmp_path: Path, host: str) -> None:
    with alone("--data-dir", str(tmp_path), "--no-token", "--host", host) as process:
        out, said = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (2, "")
    assert said.splitlines()[-1].endswith(f"--no-token is for loopback only: on {host} anybody could read the faces")
