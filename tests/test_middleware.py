"""Middleware: hosts and origins that are ours, and failures that will pass."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from faceswap.api.keys import SETTINGS
from faceswap.api.middleware import ORIGINS, known_failures, same_origin
from faceswap.api.origins import Origins
from faceswap.config import Settings
from faceswap.errors import Problem
from faceswap.store import StoreError
from faceswap.store.sqlite import store_error


async def ok(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def outcome(settings: dict[str, object], **headers: str) -> str:
    """Return the result of a request with these headers: `ok`, or the problem's code."""
    app = web.Application()
    app[SETTINGS] = Settings(Path("data"), **settings)  # type: ignore[arg-type]
    app[ORIGINS] = Origins(app[SETTINGS])
    request = make_mocked_request("GET", "/jobs", headers=headers, app=app)
    try:
        response = await same_origin(request, ok)
    except Problem as problem:
        return problem.code
    return str(response.text)  # type: ignore[attr-defined]


BEHIND_A_PROXY: dict[str, object] = {"public_url": URL("https://faces.example.org/swap")}
ON_A_PORT: dict[str, object] = {"public_url": URL("http://[2001:db8::1]:8080")}
FRIENDS: dict[str, object] = {"cors_origins": ("https://faces.example.org",)}


@pytest.mark.parametrize("settings", [BEHIND_A_PROXY, FRIENDS])
@pytest.mark.parametrize(
    "host", ["faces.example.org", "faces.example.org:443", "Faces.Example.ORG", "faces.example.org."]
)
async def test_the_host_that_a_proxy_keeps_is_ours(settings: dict[str, object], host: str) -> None:
    assert await outcome(settings, Host=host) == "ok"
    assert await outcome(settings, Host=host, Origin="https://faces.example.org") == "ok"


async def test_a_public_address_with_a_port_of_its_own_is_ours() -> None:
    assert await outcome(ON_A_PORT, Host="[2001:DB8::1]:8080", Origin="http://[2001:db8::1]:8080") == "ok"
    for other in ("[2001:db8::1]", "[2001:db8::1]:8081", "[2001:db8::2]:8080"):
        assert await outcome(ON_A_PORT, Host=other) == "foreign_host"


async def test_a_page_of_the_public_address_is_ours_where_the_proxy_changes_the_host() -> None:
    assert await outcome(BEHIND_A_PROXY, Host="127.0.0.1:8000", Origin="https://faces.example.org") == "ok"
    assert await outcome({}, Host="127.0.0.1:8000", Origin="https://faces.example.org") == "foreign_origin"


@pytest.mark.parametrize("settings", [{}, BEHIND_A_PROXY, FRIENDS])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "faces.example.org:8443",
        "faces.example.org:80",
        "faces.example.org.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1/faces.example.org",
        "xn--",
        "[",
        "a b",
        "",
    ],
)
async def test_any_other_host_is_foreign(settings: dict[str, object], host: str) -> None:
    assert await outcome(settings, Host=host) == "foreign_host"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
async def test_loopback_names_are_ours_and_their_pages_too(host: str) -> None:
    assert await outcome({}, Host=host, Origin=f"http://{host.lower()}") == "ok"


@pytest.mark.parametrize(
    "origin",
    [
        "http://faces.example.org",
        "https://faces.example.org:8443",
        "https://evil.example",
        "ftp://faces.example.org",
        "null",
        "http://[",
        "http://xn--",
    ],
)
async def test_any_other_origin_is_foreign(origin: str) -> None:
    assert await outcome(BEHIND_A_PROXY, Host="faces.example.org", Origin=origin) == "foreign_origin"


def code_of(error: Exception) -> str:
    """Return the code of the problem that a handler's failure becomes, or its class where it becomes none."""
    try:
        with known_failures():
            raise error
    except Problem as problem:
        assert problem.status == 503
        assert problem.retry_after
        return problem.code
    except (StoreError, OSError) as raised:
        return type(raised).__name__


def test_a_locked_database_will_pass(tmp_path: Path) -> None:
    path = tmp_path / "database"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as holder,
        closing(sqlite3.connect(path, timeout=0)) as other,
    ):
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.execute("CREATE TABLE a (b)")
    assert code_of(store_error(locked.value)) == "database_unavailable"


def test_a_database_that_cannot_grow_is_a_full_disk(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "database")) as database:
        database.execute("PRAGMA max_page_count = 2")
        database.execute("CREATE TABLE a (b)")
        with pytest.raises(sqlite3.OperationalError) as full:
            database.execute("INSERT INTO a VALUES (zeroblob(100000))")
    assert code_of(store_error(full.value)) == "disk_full"


def test_a_statement_that_is_wrong_is_our_own_fault(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "database")) as database, pytest.raises(sqlite3.Error) as wrong:
        database.execute("SELECT nothing")
    assert code_of(store_error(wrong.value)) == "StoreError"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EFBIG, "disk_full"),
        (errno.EACCES, "PermissionError"),
        (errno.ECONNRESET, "ConnectionResetError"),
    ],
)
def test_a_disk_without_room_will_pass(number: int, code: str) -> None:
    assert code_of(OSError(number, "what the system says")) == code
