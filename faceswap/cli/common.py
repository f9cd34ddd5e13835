"""The parts that several commands share."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ..client import FaceSwap
    from .tasks import Display

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

URL_VARIABLE = "FACESWAP_URL"
"""The environment variable of the service that commands talk to."""
API_KEY_VARIABLE = "FACESWAP_API_KEY"
"""The environment variable of the key for the service: others on the machine can read a command line."""


MAX_JOBS = 64
"""The most clips of a batch that are under way at a time."""


def say(text: str) -> None:
    """Print a line on standard error, for what is not the command's result."""
    print(f"faceswap: {text}", file=sys.stderr, flush=True)


def show_json(document: Mapping[str, Any]) -> None:
    """Print a line of JSON, for programs."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


@dataclass(frozen=True, slots=True)
class Server:
    """The service that a command talks to, as the options and the environment name it."""

    url: str | None
    key: str | None

    def client(self) -> FaceSwap:
        """Return a client of the service, or of the one that runs by default."""
        from .. import client

        return client.FaceSwap(self.url or client.DEFAULT_URL, self.key or os.environ.get(API_KEY_VARIABLE))

    @contextlib.asynccontextmanager
    async def client_or_private(self, display: Display, data_dir: Path | None = None) -> AsyncIterator[FaceSwap]:
        """Yield a client of the service, or of a private one, which keeps its files in `data_dir`."""
        async with contextlib.AsyncExitStack() as stack:
            if self.url:
                yield await stack.enter_async_context(self.client())
                return
            from .private import private_service

            with display.task("") as task:
                task.begin("Starting the service with its embedded engine")
                client = await stack.enter_async_context(private_service(data_dir))
            yield client


def service_options(default: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the options `--url` and `--key`, as `server`; `default` says what it uses without them."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def with_server(*, url: str | None, key: str | None, **arguments: Any) -> int:
            return command(server=Server(url, key), **arguments)

        key_help = f"API key of the service; better in {API_KEY_VARIABLE}."
        url_help = f"A running service, or in {URL_VARIABLE}; {default}."
        with_key = click.option("--key", metavar="KEY", help=key_help)(with_server)
        return click.option("--url", metavar="SERVER", envvar=URL_VARIABLE, help=url_help)(with_key)

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print lines of JSON, for programs.")


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a command's coroutine, which a signal cancels as Ctrl-C does; returns the exit status.

    An error of the client becomes a line on standard error. A request that the service calls wrong is wrong usage.
    """
    import asyncio

    from ..client import FaceSwapError

    async def main() -> int:
        _cancel_on_signals()
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        return INTERRUPTED
    except FaceSwapError as error:
        say(error.detail)
        return USAGE if error.status == 400 else FAILED
    except OSError as error:  # a file or folder of the user's, such as on a full disk
        say(f"{error.filename or 'The disk'}: {error.strerror or error}.")
        return FAILED


def _cancel_on_signals() -> None:
    """Let SIGTERM and SIGHUP cancel the current task, so that it stops the processes it started."""
    import asyncio
    import signal

    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a sentence about a wrong option into wrong usage."""
    from ..errors import BadRequest

    try:
        yield
    except (BadRequest, ValueError) as error:
        raise click.UsageError(str(error)) from error
