"""Messages to systemd: ready, alive, stopping. The protocol is sd_notify(3); without systemd nothing is sent."""

from __future__ import annotations

import asyncio
import os
import socket

from .store import Store, StoreError

CHECK_TIMEOUT_S = 10.0
SEND_S = 1.0
"""For a message: nothing else goes on meanwhile."""


def notify(state: str) -> None:
    """Send one state, such as `READY=1`, to the socket that systemd named."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(SEND_S)
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return


async def feed_watchdog(store: Store) -> None:
    """Tell systemd that the service is alive, as often as it asks, as long as event loop and database respond."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal():
        return
    while True:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await store.check_readable()
            notify("WATCHDOG=1")
        except (StoreError, TimeoutError):
            pass  # without the message systemd restarts the service
        await asyncio.sleep(int(microseconds) / 1e6 / 3)
