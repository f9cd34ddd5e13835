"""`faceswap serve`: one process per data folder, running until a signal stops it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
from typing import IO

from aiohttp import web

from . import log_setup
from .api import access_log, keys
from .api.connection import Listener
from .app import FAILED, create_app
from .config import ConfigError, Settings
from .files import Files, FilesUnavailable
from .store import NewerDatabase, StoreError
from .systemd import feed_watchdog, notify
from .tracing import TracingUnavailable, exporting

log = logging.getLogger(__name__)

SHUTDOWN_S = 4.0
"""The longest time for open answers to end; the whole stop stays below ten seconds."""


def serve(settings: Settings) -> int:
    """Run the service until a signal stops it; returns the exit status."""
    os.umask(0o077)  # only this user may read the files of this process and its children
    log_setup.configure(settings)
    try:
        lock = _lock(settings)
    except OSError as error:
        print(f"faceswap: {error}", file=sys.stderr)
        return 1
    try:
        with exporting():
            return asyncio.run(_serve(settings))
    except (ConfigError, NewerDatabase, TracingUnavailable) as error:
        print(f"faceswap: {error}", file=sys.stderr)
        return 1 if isinstance(error, NewerDatabase) else 2
    finally:
        lock.close()


async def _serve(settings: Settings) -> int:
    try:
        app = create_app(settings)
    except OSError as error:
        print(f"faceswap: {_unusable(settings, error)}", file=sys.stderr)
        return 1
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    try:
        if not await _set_up(runner, stop):
            return 0
    except (StoreError, OSError) as error:
        print(f"faceswap: {_unusable(settings, error)}", file=sys.stderr)
        return 1
    assert runner.server is not None
    listener = Listener(runner.server, access_log.log if settings.access_log else None)
    try:
        try:
            host, port = await listener.bind(settings.host, settings.port)
        except OSError as error:
            reason = os.strerror(error.errno) if isinstance(error.errno, int) and error.errno > 0 else error
            print(f"faceswap: cannot listen on {settings.host}:{settings.port}: {reason}", file=sys.stderr)
            return 1
        count, engine = len(app[keys.ENGINES]), "embedded"
        if count != 1:
            engine = f"{count} embedded" if count else f"{len(settings.comfyui_urls)} ComfyUI"
        shown = f"[{host}]" if ":" in host else host
        print(f"faceswap: listening on http://{shown}:{port} (engine: {engine})", flush=True)
        notify("READY=1")
        return await _accept_until(stop, app, listener)
    finally:
        notify("STOPPING=1")
        listener.close()
        await runner.cleanup()


async def _set_up(runner: web.AppRunner, stop: asyncio.Event) -> bool:
    """Set up the application, which may wait for what it needs; False when told to stop meanwhile."""
    setting_up = asyncio.create_task(runner.setup(), name="setup")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait((setting_up, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if setting_up.done():
        setting_up.result()
        return True
    setting_up.cancel()
    await asyncio.gather(setting_up, return_exceptions=True)
    return False


async def _accept_until(stop: asyncio.Event, app: web.Application, listener: Listener) -> int:
    """Accept connections until told to stop, or until a background task dies; returns the exit status."""
    work = [
        asyncio.create_task(listener.run(), name="listener"),
        asyncio.create_task(stop.wait(), name="stop"),
        asyncio.create_task(app[FAILED].wait(), name="failure"),
    ]
    watchdog = asyncio.create_task(feed_watchdog(app[keys.STORE]), name="watchdog")
    done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    for task in (watchdog, *work):
        task.cancel()
    await asyncio.gather(watchdog, *work, return_exceptions=True)
    for task in done:
        if task.exception() is not None:
            log.critical("the %s died", task.get_name(), exc_info=task.exception())
    return 0 if work[1] in done else 1


def _unusable(settings: Settings, error: StoreError | OSError) -> str:
    """Say in a sentence why the data folder, or what stands in its place, cannot be used."""
    if isinstance(error, FilesUnavailable):
        return f"FACESWAP_FILES_URL: {error}"
    if isinstance(error, StoreError) and settings.database_url:
        return f"the database of FACESWAP_DATABASE_URL cannot be used: {error}"
    if isinstance(error, StoreError):
        return f"the database {str(Files(settings.data_dir).database)!r} cannot be used: {error}"
    reason = error.strerror or error
    return f"FACESWAP_DATA_DIR={str(settings.data_dir)!r} cannot be used: {reason}"


def _lock(settings: Settings) -> IO[str]:
    """Lock the data folder, which has one process at a time. Raises `OSError` with a sentence."""
    files = Files(settings.data_dir)
    try:
        files.create()
        lock = files.lock.open("w")
    except OSError as error:
        raise OSError(_unusable(settings, error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise OSError(f"another faceswap already uses {str(settings.data_dir)!r}") from error
    return lock
