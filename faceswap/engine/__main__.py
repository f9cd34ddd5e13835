"""`python -m faceswap.engine`: the embedded engine as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

from aiohttp import web

from ..limits import FEW_THREADS
from . import memory
from .access import TOKEN_VARIABLE, is_loopback
from .faults import Faults

SHUTDOWN_S = 5.0
MAX_UPLOAD_SIZE = 2 << 30
"""Bytes."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's `mallopt`."""
ARENAS = 4
"""Heaps that threads share: by default a machine has eight for each core, and none gives back what it once had."""
PICTURE_BYTES = 1 << 20
"""Larger blocks go back to the system when they are freed: the C library would keep hundreds of MB of pictures."""
KEPT_BYTES = 16 << 20
"""Free memory at the end of a heap that is kept: each frame needs some, and the system clears pages it gives anew."""

PRIVATE_UMASK = 0o077
"""Faces are in these files: nobody else on the machine may read them."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, with `--watch-stdin` also until standard input ends."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.no_token and not is_loopback(options.host):
        parser.error(f"--no-token is for loopback only: on {options.host} anybody could read the faces")
    options.token = os.environ.pop(TOKEN_VARIABLE, "")  # popped: children of ours have no need of it
    os.umask(PRIVATE_UMASK)
    _limit_memory()
    os.environ.update({name: few for name, few in FEW_THREADS.items() if name not in os.environ})
    if options.list_networks:
        from .network_list import lines

        sys.stdout.write("\n".join(lines(options.models_dir or options.data_dir / "models")) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    asyncio.run(serve(options))
    return 0


def _limit_memory() -> None:
    memory.limit()
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries do without
        mallopt(M_MMAP_THRESHOLD, PICTURE_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_ARENA_MAX, ARENAS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="faceswap engine",
        description=__doc__,
        epilog=f"Callers send `Authorization: Bearer TOKEN`. The token is what {TOKEN_VARIABLE} holds; "
        "without one a new token is made and printed.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8188, help="0 picks a free one")
    parser.add_argument("--no-token", action="store_true", help="let every user of this machine in; on loopback only")
    parser.add_argument("--data-dir", type=Path, default=_default_data_dir(), help="holds input, output and temp")
    parser.add_argument("--models-dir", type=Path, help="has the operator's networks (models in the data folder)")
    parser.add_argument("--list-networks", action="store_true", help="list what --models-dir has, and end")
    parser.add_argument("--preset", default="medium", help="x264's preset")
    parser.add_argument("--max-upload-size", type=int, default=MAX_UPLOAD_SIZE, metavar="BYTES")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when standard input ends: a child's life line")
    parser.add_argument(
        "--faults",
        type=lambda text: Faults.parse(json.loads(text)),
        metavar="JSON",
        help="what to do wrong, for tests; also opens POST /faults",
    )
    return parser


def _default_data_dir() -> Path:
    """Return the engine's folder in the user's data folder by the XDG base directory rules."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "faceswap-engine"


async def serve(options: argparse.Namespace) -> None:
    """Run the engine until it is told to stop, or until its own worker fails.

    Raises SystemExit with a sentence when the port or the folder is taken.
    """
    # Not before the process is limited: OpenCV reads its limits when it is imported.
    from .server import ENGINE, create_app

    made = None if options.no_token or options.token else secrets.token_urlsafe(32)
    app = create_app(
        options.data_dir,
        models_dir=options.models_dir,
        token=None if options.no_token else options.token or made,
        faults=options.faults,
        max_upload_size=options.max_upload_size,
        preset=options.preset,
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    try:
        await runner.setup()
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        await runner.cleanup()
        raise SystemExit(f"faceswap engine: {error}") from None
    try:
        host = f"[{options.host}]" if ":" in options.host else options.host
        sys.stdout.write(f"faceswap engine: listening on http://{host}:{runner.addresses[0][1]}\n")
        if made is not None:
            sys.stdout.write(f"faceswap engine: callers have to send the header Authorization: Bearer {made}\n")
        sys.stdout.flush()
        await _until_stopped(app[ENGINE].worker, options.watch_stdin)
    finally:
        await runner.cleanup()


async def _until_stopped(worker: asyncio.Task[None], watch_stdin: bool) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    if watch_stdin:
        threading.Thread(target=_await_end_of_input, args=(loop, stopped), daemon=True).start()
    waiter = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait({waiter, worker}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _await_end_of_input(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    loop.call_soon_threadsafe(stopped.set)


if __name__ == "__main__":
    sys.exit(main())
