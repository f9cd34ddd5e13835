"""`faceswap doctor`: each thing that may be missing is found, and nothing is changed by the look."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from file_places import make_place
from postgres import database, empty_database
from processes import dead_url, files_in
from service_rig import EngineRig, Handler, running_service
from stored_jobs import opened

from faceswap.config import resource_dir
from faceswap.doctor import findings
from faceswap.keyring import digest, new_key


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineRig]:
    async with EngineRig(tmp_path / "engine") as engine:
        yield engine


async def found(folder: Path, *comfyui_urls: str, **settings: object) -> dict[str, list[str]]:
    """Return the lines that do not begin with ok, by what they are about."""
    environ = {"FACESWAP_DATA_DIR": str(folder), "FACESWAP_MIN_FREE_MB": "0", "FACESWAP_MAX_UPLOAD_MB": "64"}
    environ |= {f"FACESWAP_{name.upper()}": str(value) for name, value in settings.items()}
    lines: dict[str, list[str]] = {}
    async for finding in findings({"comfyui_urls": ",".join(comfyui_urls)}, environ):
        if finding.verdict != "ok":
            lines.setdefault(finding.about.partition(" at ")[0], []).append(f"{finding.verdict} {finding.text}")
    return lines


async def test_where_all_is_there_nothing_is_missing_and_nothing_is_made(tmp_path: Path, engine: EngineRig) -> None:
    assert await found(tmp_path / "data", engine.url) == {}
    assert not (tmp_path / "data").exists()


async def test_it_may_look_while_the_service_runs(tmp_path: Path, engine: EngineRig) -> None:
    async with running_service(tmp_path / "data", engine):
        before = files_in(tmp_path / "data")
        assert await found(tmp_path / "data", engine.url) == {}
        assert files_in(tmp_path / "data") == before


async def test_a_comfyui_that_is_away_is_told_with_its_address_and_what_to_do(tmp_path: Path) -> None:
    lines = await found(tmp_path, dead_url())
    assert lines == {"ComfyUI": ["FAIL ComfyUI cannot be reached; start it, or correct FACESWAP_COMFYUI_URLS"]}


async def test_a_comfyui_that_asks_for_a_token_is_told(tmp_path: Path) -> None:
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=401)

    async with EngineRig(tmp_path / "engine", refuse) as engine:
        [line] = (await found(tmp_path, engine.url))["ComfyUI"]
    assert line.startswith("FAIL")
    assert "FACESWAP_COMFYUI_HEADERS" in line


async def test_a_proxy_that_lets_no_socket_through_is_told(tmp_path: Path) -> None:
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=404) if request.path == "/ws" else await handler(request)

    async with EngineRig(tmp_path / "engine", refuse) as engine:
        [line] = (await found(tmp_path, engine.url))["ComfyUI"]
    assert line.startswith("FAIL")


async def test_each_node_and_model_that_comfyui_lacks_is_told(tmp_path: Path) -> None:
    async def lack(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.json_response({}) if request.path == "/object_info/ReActorFaceBoost" else await handler(request)

    graph = json.loads((resource_dir("workflows") / "FaceSwap-Reactor-API.json").read_text())
    graph["3"]["inputs"]["swap_model"] = "nobody_has_this.onnx"
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "mine.json").write_text(json.dumps(graph))
    async with EngineRig(tmp_path / "engine", lack) as engine:
        lines = await found(tmp_path, engine.url, workflow_dir=tmp_path / "workflows", workflow="mine")
    assert [line[:4] for line in lines["ComfyUI"]] == ["FAIL", "FAIL"]
    assert any("ReActorFaceBoost" in line for line in lines["ComfyUI"])
    assert any("nobody_has_this.onnx" in line for line in lines["ComfyUI"])


async def test_an_upload_limit_below_ours_is_a_note_only_because_videos_go_in_pieces(tmp_path: Path) -> None:
    async with EngineRig(tmp_path / "engine", max_upload_size=10 * 2**20) as engine:
        [line] = (await found(tmp_path, engine.url))["ComfyUI"]
    assert line.startswith("note it takes files of up to 10 MB")
    assert "--max-upload-size 64" in line


@pytest.mark.parametrize(
    ("about", "settings", "said"),
    [
        ("settings", {"port": "none"}, "FACESWAP_PORT"),
        ("workflow", {"workflow": "missing"}, "there is no workflow of this name"),
        ("disk", {"min_free_mb": 10**9}, "free some space"),
        ("files", {"files_url": "/nowhere/at/all"}, "is it mounted?"),
        ("database", {"database_url": "postgresql://nobody@127.0.0.1:1/none"}, "PostgreSQL cannot be used"),
    ],
)
async def test_what_is_missing_is_named(
    tmp_path: Path, engine: EngineRig, about: str, settings: dict[str, Any], said: str
) -> None:
    lines = await found(tmp_path, engine.url, **settings)
    assert [line[:4] for line in lines[about]] == ["FAIL"]
    assert said in lines[about][0]


async def test_who_is_let_in_is_told(tmp_path: Path, engine: EngineRig) -> None:
    open_to_all = {"host": "0.0.0.0"}
    for settings in (open_to_all, {"public_url": "https://faces.example.org"}):
        [line] = (await found(tmp_path, engine.url, **settings))["access"]
        assert line.startswith("FAIL")
        assert "faceswap key add" in line
    assert (await found(tmp_path, engine.url, **open_to_all, allow_anonymous=1))["access"][0].startswith("note")
    keys = tmp_path / "keys"
    keys.write_text("no key\n")
    assert "line 1" in (await found(tmp_path, engine.url, api_keys_file=keys))["access"][0]
    keys.write_text(f"ann:{digest(new_key())}\n")
    assert await found(tmp_path, engine.url, **open_to_all, api_keys_file=keys) == {}
    async with opened(tmp_path / "faceswap.db") as store:
        await store.add_key(digest(new_key()), "bob")
        assert await found(tmp_path, engine.url, **open_to_all) == {}
        await store.revoke_keys("bob")
        assert "nobody is let in" in (await found(tmp_path, engine.url))["access"][0]


async def test_a_data_folder_that_is_none_is_told(tmp_path: Path, engine: EngineRig) -> None:
    (tmp_path / "file").touch()
    assert "data folder" in await found(tmp_path / "file", engine.url)


async def test_a_database_is_looked_at_and_not_brought_up_to_date(tmp_path: Path, engine: EngineRig) -> None:
    async with opened(tmp_path / "faceswap.db"):
        pass

    def version(number: int) -> None:
        with closing(sqlite3.connect(tmp_path / "faceswap.db")) as connection:
            connection.execute(f"PRAGMA user_version = {number}")

    version(1)
    assert await found(tmp_path, engine.url) == {}
    with closing(sqlite3.connect(tmp_path / "faceswap.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    version(99)
    assert "newer than this program" in (await found(tmp_path, engine.url))["database"][0]
    (tmp_path / "faceswap.db").write_bytes(b"no database at all" * 100)
    assert "SQLite cannot be used" in (await found(tmp_path, engine.url))["database"][0]


async def test_a_database_of_postgresql_is_looked_at_whether_it_is_empty_or_not(
    tmp_path: Path, engine: EngineRig
) -> None:
    for make in (empty_database, database):
        with make() as url:
            assert await found(tmp_path, engine.url, database_url=url) == {}


@pytest.mark.parametrize("kind", ["folder", "nanio"])
async def test_files_are_probed_without_a_trace(
    tmp_path: Path, engine: EngineRig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(kind, tmp_path, monkeypatch)
    (tmp_path / "one").mkdir()
    assert await found(tmp_path / "one", engine.url, files_url=place.url) == {}
    assert place.stored() == []


def test_the_command_prints_a_line_each_and_its_status_says_whether_something_is_missing(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "faceswap", "doctor", "--data-dir", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not done.stderr
        return done.returncode, done.stdout.splitlines()

    status, lines = run()
    assert status == 0
    assert any(line.startswith("ok    embedded engine: it answers") for line in lines)
    status, lines = run("--comfyui-url", dead_url())
    assert status == 1
    assert [line for line in lines if line.startswith("FAIL")] == lines[-1:]
