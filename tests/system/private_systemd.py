"""A systemd of a test's own: the first process of namespaces of its own, which starts a unit as on a real machine.

It sees this machine's files and network. Its units, `/run`, `/var/lib` and `/opt` are the test's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
from waiting import WAIT_S, eventually

ROOT = Path(__file__).parents[2]
MANAGER = Path("/lib/systemd/systemd")
TARGETS = ("sysinit", "basic", "network-online", "shutdown", "test")
"""The targets that a unit depends on, unasked or by name, and the one that is started first: all of them empty."""

OUTER = """
set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/faceswap-test-$$
echo 0 > /sys/fs/cgroup/faceswap-test-$$/cgroup.procs
unshare --cgroup --mount --pid --fork --kill-child --mount-proc bash -c "$1" bash "$2" "$3" || true
echo 0 > /sys/fs/cgroup/cgroup.procs
find /sys/fs/cgroup/faceswap-test-$$ -depth -type d -exec rmdir {} \\;
"""
"""A control group for the manager, which is removed when it has ended."""

INNER = """
set -e
mount --make-rshared /  # as on a machine: a service's credentials are mounted beside the manager
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind -o ro /proc/sys /proc/sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /opt
mount --bind "$1/lib" /var/lib
mkdir -p -m 700 /opt/faceswap /run/credstore
chmod 755 /opt/faceswap
cp --recursive "$1/credstore/." /run/credstore
ln -s "$2" /opt/faceswap/.venv
export container=test SYSTEMD_UNIT_PATH="$1/units"
exec /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no
"""


def missing() -> str:
    """Return what keeps a machine from running a systemd of a test's own; empty where nothing does."""
    if os.geteuid() != 0:
        return "only root can start a systemd of the test's own"
    if not MANAGER.exists() or shutil.which("systemctl") is None:
        return "there is no systemd: apt-get install systemd"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        return "this machine allows no new namespaces"
    return ""


class Manager:
    """A running systemd with one unit, the one of the repository, and a drop-in for the test's own places."""

    UNIT = "faceswap.service"

    def __init__(self, folder: Path, outer: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self._outer = outer

    @property
    def _main(self) -> psutil.Process | None:
        """The manager as this machine knows it; None before it has started and when it has ended."""
        with suppress(psutil.NoSuchProcess):  # one has just ended: it is looked at again
            children = psutil.Process(self._outer.pid).children(recursive=True)
            return next((child for child in children if child.name() == "systemd" and child.ppid() != 1), None)
        return None

    async def run(self, *command: str) -> str:
        """Run a command beside the manager; returns what it printed. Raises AssertionError when it fails."""
        main = self._main
        assert main is not None, "there is no manager"
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "--target", str(main.pid), "--mount", "--pid", "--cgroup", *command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(WAIT_S):
            printed, _ = await process.communicate()
        assert process.returncode == 0, printed.decode()
        return printed.decode()

    async def show(self, name: str) -> str:
        """Return a property of the unit."""
        return (await self.run("systemctl", "show", "--value", "--property", name, self.UNIT)).strip()

    async def processes(self) -> list[psutil.Process]:
        """Return the unit's processes, the main one first."""
        main = self._main
        assert main is not None, "there is no manager"
        first = next(child for child in main.children() if "faceswap" in " ".join(child.cmdline()))
        return [first, *first.children(recursive=True)]

    def log(self) -> str:
        """Return what the service has written."""
        return (self.folder / "lib" / "faceswap.log").read_text(encoding="utf-8")

    async def ready(self) -> None:
        """Wait until the manager can be asked."""

        async def starts() -> bool:
            try:
                return await self.run("systemctl", "is-active", "test.target") == "active\n"
            except AssertionError:
                return False

        await eventually(starts)

    async def end(self) -> None:
        """End the manager and everything it has started."""

        async def ends() -> bool:
            if self._outer.returncode is None and (main := self._main) is not None:
                with suppress(psutil.NoSuchProcess):  # it has ended since it was looked for
                    main.kill()
            return self._outer.returncode is not None

        await eventually(ends)


@asynccontextmanager
async def systemd(folder: Path, drop_in: str, **credentials: str) -> AsyncIterator[Manager]:
    """Run a systemd that knows the repository's unit; `credentials` lie in its credential store."""
    units, credstore, state = folder / "units", folder / "credstore", folder / "lib"
    for path in (folder, units / f"{Manager.UNIT}.d", credstore, state / "private"):
        path.mkdir(parents=True, exist_ok=True)
    state.chmod(0o755)
    (state / "private").chmod(0o700)
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n", encoding="utf-8")
    shutil.copy(ROOT / Manager.UNIT, units)
    (units / f"{Manager.UNIT}.d" / "test.conf").write_text(drop_in, encoding="utf-8")
    for name, text in credentials.items():
        (credstore / f"faceswap.{name}").write_text(text, encoding="utf-8")
    outer = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--uts", "--ipc", "--propagation", "private"),
        *("bash", "-c", OUTER, "bash", INNER, str(folder), sys.prefix),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    manager = Manager(folder, outer)
    try:
        await manager.ready()
        yield manager
    finally:
        await manager.end()
