"""Messages to systemd, over its datagram socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Child
from waiting import WAIT_S

from faceswap.systemd import notify


def test_a_systemd_that_does_not_read_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setattr("faceswap.systemd.SEND_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf, socket.socket(deaf.family, deaf.type) as other:
        deaf.bind(address)
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", address)
        notify("WATCHDOG=1")  # returns


async def test_systemd_hears_ready_then_life_then_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        loop = asyncio.get_running_loop()

        async def hears(state: bytes) -> None:
            async with asyncio.timeout(WAIT_S):
                while (heard := await loop.sock_recv(systemd, 100)) != state:
                    assert heard == b"WATCHDOG=1"

        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        command = ("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
        async with Child(tmp_path / "log", "faceswap", *command, env=env) as service:
            await hears(b"READY=1")
            await hears(b"WATCHDOG=1")
            await hears(b"WATCHDOG=1")
            stopped, _ = await asyncio.gather(service.stop(), hears(b"STOPPING=1"))
            assert stopped == 0
