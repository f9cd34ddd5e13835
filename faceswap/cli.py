"""The command line: serve | swap | verify | migrate | doctor | key | backup | audit | engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from . import __version__
from .child_process import kill_group, terminate, wait_within
from .client import FaceSwap, FaceSwapError, JobEvent, is_url
from .config import ConfigError, Settings, default_data_dir
from .errors import BadRequest
from .jobs import Options

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

API_KEY_VARIABLE = "FACESWAP_API_KEY"
"""The environment variable of the key for `swap --url`: others on the machine can read a command line."""

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15.0
QUIT_TIMEOUT_S = 2.0
CANCEL_TIMEOUT_S = 10
PRIVATE_RESUMES = 2
"""Fewer than for a server, because nobody restarts a private service."""
LOG_TAIL_BYTES = 4000

PRIVATE = dict.fromkeys(
    (
        "FACESWAP_API_KEYS_FILE",
        "FACESWAP_DATABASE_URL",
        "FACESWAP_FILES_URL",
        "FACESWAP_PUBLIC_URL",
        "CREDENTIALS_DIRECTORY",
    ),
    "",
)
"""The settings that a private service does not take over: who may use it, and what it would share with others."""

_LISTENING = re.compile(r"faceswap: listening on (https?://\S+)")
_LINE_EVERY_PERCENT = 10

_OPTION_NAMES = textwrap.fill(", ".join(option.name for option in fields(Options)), 76, subsequent_indent="  ")

_SWAP_EPILOG = f"""\
workflow options:
  {_OPTION_NAMES}

A server that asks for a key finds it in the environment variable {API_KEY_VARIABLE}, or is given it by --key, which
others on this machine can read.

examples:
  faceswap swap --image face.jpg --video clip.mp4 -o swapped.mp4
  faceswap swap --image face.jpg --video clip.mp4 -o swapped.mp4 --option crf=18 --option face_index=0,1
  faceswap swap --image https://example.org/face.jpg --video clip.mp4 -o swapped.mp4 --url http://127.0.0.1:8000
"""

_SERVE_EPILOG = """\
examples:
  faceswap serve
  faceswap serve --port 9000 --comfyui-url http://127.0.0.1:8188 --comfyui-url http://gpu-2:8188

Everything else is set by FACESWAP_... variables; README.md lists them.
"""


_VERIFY_EPILOG = """\
Shows the metadata tag, the content credentials (C2PA) and the watermark. Exit status: 0 the file says that a model made
or changed it, 1 it does not or its credentials are invalid, 2 it cannot be read.
"""

_MIGRATE_EPILOG = """\
Stop the service first. The copy is made whole and compared with the original, or nothing is kept; the original stays
as it is. Give the URL of PostgreSQL in FACESWAP_DATABASE_URL if it has a password: others can read a command line.
Their files are copied where --files is given, before the jobs; a second try copies them again.

examples:
  FACESWAP_DATABASE_URL=postgresql://faceswap:secret@db/faceswap faceswap migrate
  faceswap migrate --from sqlite:/var/lib/faceswap/faceswap.db --to postgresql://faceswap@db/faceswap --files s3://bucket
"""


_KEY_EPILOG = """\
A running service notices within seconds. Jobs belong to the name: several keys may have it, to change one for another.
Once there is a key, nobody is let in without one, also when the last was revoked.

examples:
  faceswap key add alice
  faceswap key list
  faceswap key revoke alice --id 3fa1b2c4d5e6
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED


def say(text: str) -> None:
    """Print a line on standard error, for what is not the command's result."""
    print(f"faceswap: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="faceswap", description="Swap faces in videos.")
    parser.add_argument("--version", action="version", version=f"faceswap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter

    serve = commands.add_parser("serve", help="run the service", epilog=_SERVE_EPILOG, formatter_class=raw)
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", help="port to listen on, 0 for a free one (8000)")
    serve.add_argument("--data-dir", metavar="DIR", help="where jobs, inputs and results are kept")
    serve.add_argument(
        "--comfyui-url", metavar="URL", action="append", help="a ComfyUI server, repeatable; none: the embedded engine"
    )
    serve.add_argument("--allow-anonymous", action="store_true", help="listen on other than loopback without API keys")
    serve.add_argument("--watch-stdin", action="store_true", help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)

    swap = commands.add_parser("swap", help="swap one face into one video", epilog=_SWAP_EPILOG, formatter_class=raw)
    swap.add_argument(
        "--image", required=True, metavar="FACE", help="picture of the face to put in: a file or an address"
    )
    swap.add_argument("--video", required=True, metavar="CLIP", help="video to change: a file or an address")
    swap.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="file to save the result to")
    swap.add_argument(
        "--consent", metavar="TEXT", help="a text or reference that says that the person shown has agreed"
    )
    swap.add_argument("--url", metavar="SERVER", help="a running service; without it one is started for this job")
    swap.add_argument(
        "--option", metavar="K=V", action="append", default=[], type=_option, help="a workflow option, repeatable"
    )
    swap.add_argument("--key", metavar="KEY", help=f"API key of the service; better in {API_KEY_VARIABLE}")
    swap.set_defaults(run=_swap)

    verify = commands.add_parser(
        "verify", help="show what a video says of its making", epilog=_VERIFY_EPILOG, formatter_class=raw
    )
    verify.add_argument("file", type=Path, metavar="FILE", help="a result, or any other video")
    verify.add_argument("--json", action="store_true", help="print a JSON object")
    verify.set_defaults(run=_verify)

    migrate = commands.add_parser(
        "migrate", help="copy all jobs into another database", epilog=_MIGRATE_EPILOG, formatter_class=raw
    )
    source, target = f"sqlite:{default_data_dir(os.environ) / 'faceswap.db'}", os.environ.get("FACESWAP_DATABASE_URL")
    migrate.add_argument(
        "--from", dest="source", default=source, metavar="DATABASE", help="sqlite:/path/faceswap.db, or postgresql://…"
    )
    migrate.add_argument(
        "--to",
        dest="target",
        default=target,
        required=not target,
        metavar="DATABASE",
        help="as before; has no jobs yet",
    )
    migrate.add_argument("--files", metavar="URL", help="copy files too: s3://bucket/prefix, or a folder")
    migrate.set_defaults(run=_migrate)

    doctor = commands.add_parser("doctor", help="check all that a job needs, and say what is missing")
    doctor.add_argument("--data-dir", metavar="DIR", help="where the service keeps jobs, inputs and results")
    doctor.add_argument("--comfyui-url", metavar="URL", action="append", help="a ComfyUI server, repeatable")
    doctor.set_defaults(run=_doctor)

    backup = commands.add_parser("backup", help="copy the database while the service runs")
    backup.add_argument("file", type=Path, metavar="FILE", help="is replaced at once when the copy is whole")
    backup.add_argument("--data-dir", metavar="DIR", help="the data folder of the service")
    backup.set_defaults(run=_backup)

    audit = commands.add_parser("audit", help="print what happened to jobs, as lines of JSON")
    audit.add_argument("--since", metavar="TIME", help="from this date or time on, in UTC: 2026-11-25T22:00:00Z")
    audit.add_argument("--job", metavar="ID", help="of this job only")
    audit.add_argument("--data-dir", metavar="DIR", help="the data folder of the service")
    audit.set_defaults(run=_audit)

    key = commands.add_parser("key", help="make, list and revoke API keys", epilog=_KEY_EPILOG, formatter_class=raw)
    actions = key.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key and print it, this once")
    listing = actions.add_parser("list", help="list all keys, without showing any")
    revoke = actions.add_parser("revoke", help="let a key in no more")
    for action in (add, revoke):
        action.add_argument("name", metavar="NAME", help="the owner of the jobs that are made with the key")
    revoke.add_argument("--id", dest="key_id", default="", help="of the one key that is meant, as listed; without: all")
    for action, run in ((add, _key_add), (listing, _key_list), (revoke, _key_revoke)):
        action.add_argument("--data-dir", metavar="DIR", help="where the service keeps jobs, inputs and results")
        action.set_defaults(run=run)

    engine = commands.add_parser("engine", help="run the embedded engine alone, a small server like ComfyUI")
    engine.add_argument("--host", help="address to listen on")
    engine.add_argument("--port", help="port to listen on")
    engine.add_argument("--data-dir", metavar="DIR", help="where its inputs and outputs are kept")
    engine.add_argument("--no-token", action="store_true", help="let every user of this machine in; on loopback only")
    engine.set_defaults(run=_engine)
    return parser


def _option(text: str) -> tuple[str, Any]:
    """Parse `k=v`, with `v` as JSON where it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _serve(arguments: argparse.Namespace) -> int:
    try:
        settings = Settings.load(
            host=arguments.host,
            port=arguments.port,
            data_dir=arguments.data_dir,
            comfyui_urls=",".join(arguments.comfyui_url) if arguments.comfyui_url else None,
            allow_anonymous="1" if arguments.allow_anonymous else None,
        )
    except ConfigError as error:
        say(str(error))
        return USAGE
    if arguments.watch_stdin:
        threading.Thread(target=_stop_with_stdin, name="watch stdin", daemon=True).start()
    from .serve import serve  # here, because the other commands need none of the service

    return serve(settings)


def _verify(arguments: argparse.Namespace) -> int:
    from .provenance import verify  # here, because the other commands need none of it

    return verify(arguments.file, as_json=arguments.json)


def _migrate(arguments: argparse.Namespace) -> int:
    from .migrate import migrate  # here, because the other commands need none of it

    return migrate(arguments.source, arguments.target, arguments.files, say)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import doctor  # here, because the other commands need none of it

    urls = ",".join(arguments.comfyui_url) if arguments.comfyui_url else None
    return doctor({"data_dir": arguments.data_dir, "comfyui_urls": urls}, print)


def _backup(arguments: argparse.Namespace) -> int:
    from .backup import backup  # here, because the other commands need none of it

    return backup(arguments.file, arguments.data_dir, say)


def _audit(arguments: argparse.Namespace) -> int:
    from .audit import audit  # here, because the other commands need none of it

    try:
        return audit(sys.stdout, arguments.data_dir, arguments.since, arguments.job, say)
    except BrokenPipeError:  # such as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _key_add(arguments: argparse.Namespace) -> int:
    from . import key_command  # here, because the other commands need none of it

    return key_command.add({"data_dir": arguments.data_dir}, arguments.name, print, say)


def _key_list(arguments: argparse.Namespace) -> int:
    from . import key_command

    return key_command.show_list({"data_dir": arguments.data_dir}, print, say)


def _key_revoke(arguments: argparse.Namespace) -> int:
    from . import key_command

    return key_command.revoke({"data_dir": arguments.data_dir}, arguments.name, arguments.key_id, say)


def _stop_with_stdin() -> None:
    """Stop this process once the process at the other end of its standard input has ended in any way."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _engine(arguments: argparse.Namespace) -> int:
    data_dir = arguments.data_dir or str(default_data_dir(os.environ) / "engine-alone")
    chosen = {"--host": arguments.host, "--port": arguments.port, "--data-dir": data_dir}
    words = [word for name, value in chosen.items() if value is not None for word in (name, value)]
    words += ["--no-token"] if arguments.no_token else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "faceswap.engine", *words])


def _swap(arguments: argparse.Namespace) -> int:
    try:
        options = Options.parse(dict(arguments.option)).to_dict()
        _check_paths(arguments)
    except (BadRequest, ValueError) as error:
        say(str(error))
        return USAGE
    return asyncio.run(_swap_job(arguments, options))


def _check_paths(arguments: argparse.Namespace) -> None:
    """Raise ValueError, with a sentence, for an input or output that cannot be used, before anything is started."""
    for name in ("image", "video"):
        source = getattr(arguments, name)
        if not is_url(source) and not Path(source).is_file():
            raise ValueError(f"The {name} {source} is not there, or is not a file.")
    output = arguments.output
    if output.exists() and not output.is_file():
        raise ValueError(f"The output {output} is there already and is not a file.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"The folder of the output {output} is not there.")


async def _swap_job(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    _cancel_on(signal.SIGTERM, signal.SIGHUP)
    try:
        async with contextlib.AsyncExitStack() as stack:
            if arguments.url:
                client = FaceSwap(arguments.url, key=arguments.key or os.environ.get(API_KEY_VARIABLE))
                await stack.enter_async_context(client)
            else:
                client = await stack.enter_async_context(private_service())
            with ProgressBar(sys.stderr) as bar:
                files = arguments.video, arguments.image, arguments.output
                await run_job(client, *files, options, bar, arguments.consent)
    except JobCancelled:
        return INTERRUPTED
    except (FaceSwapError, JobFailed, OSError) as error:
        say(str(error))
        return USAGE if isinstance(error, FaceSwapError) and error.status == 400 else FAILED
    return DONE


def _cancel_on(*signals: signal.Signals) -> None:
    """Let these signals cancel the current task as Ctrl-C does, so that it stops the processes it started."""
    task = asyncio.current_task()
    if task is not None:
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


class JobFailed(Exception):
    """The job ended without a result; the message is a sentence that says why."""


class JobCancelled(Exception):
    """The user interrupted, and the job was cancelled through the API."""


async def run_job(
    client: FaceSwap,
    video: str,
    image: str,
    output: Path,
    options: dict[str, Any],
    bar: ProgressBar,
    consent: str | None = None,
) -> JobEvent:
    """Submit a job, show it in `bar` and save its result to `output`; returns the `completed` event.

    Cancelling this task cancels the job and raises `JobCancelled`. Raises `JobFailed`, `FaceSwapError`.
    """
    started = time.monotonic()
    prompt_id = await client.submit(video, image, options=options, consent=consent)
    try:
        end = await _follow(client, prompt_id, bar)
        if end.type != "completed":
            raise JobFailed(str(end.data.get("detail") or end.data.get("message") or "The job was cancelled."))
        await client.download(str(end.data["filename"]), output, sha256=end.data.get("sha256"))
    except asyncio.CancelledError:
        bar.line("Cancelling the job; press Ctrl-C again to quit at once.")
        with contextlib.suppress(FaceSwapError, TimeoutError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await client.cancel(prompt_id)
        raise JobCancelled from None
    for warning in end.data.get("warnings", ()):
        bar.line(f"Warning: {warning}")
    bar.line(f"Saved {output} ({end.data.get('bytes', 0) / 1e6:.1f} MB) in {time.monotonic() - started:.1f} s.")
    return end


async def _follow(client: FaceSwap, prompt_id: str, bar: ProgressBar) -> JobEvent:
    """Show the job until it ends; returns the event that ended it."""
    async for event in client.events(prompt_id):
        if event.type == "progress":
            bar.update(event.data)
        elif not event.terminal and "message" in event.data:
            bar.step(str(event.data["message"]))
    return event


class ProgressBar:
    """A job's progress on a terminal, redrawn in place; elsewhere (a log, a pipe) a line for every tenth of the job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._step = ""
        self._next_percentage = 0
        self._drawn = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def step(self, message: str) -> None:
        """Show the job's current step."""
        if message == self._step:
            return
        self._step = message
        if self._live:
            self._draw(message)
        else:
            self.line(message)

    def update(self, progress: Any) -> None:
        """Show the data of a `progress` event."""
        percentage = float(progress["percentage"])
        if self._live:
            return self._draw(self._row(percentage, progress))
        if percentage >= self._next_percentage:
            self._next_percentage = (int(percentage) // _LINE_EVERY_PERCENT + 1) * _LINE_EVERY_PERCENT
            self.line(self._row(percentage, progress))
        return None

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._erase()
        print(text, file=self._stream, flush=True)

    def _row(self, percentage: float, progress: Any) -> str:
        total = str(progress["total"])
        figures = [f"{percentage:5.1f}%", f"{progress['current']:>{len(total)}}/{total} frames"]
        if progress.get("fps"):
            figures.append(f"{progress['fps']:5.1f} fps")
        if progress.get("eta_seconds") is not None:
            figures.append(f"{_clock(progress['eta_seconds'])} left")
        text = "  ".join(figures)
        if not self._live:
            return text
        width = min(40, shutil.get_terminal_size().columns - len(text) - 2)
        filled = round(max(width, 0) * percentage / 100)
        return f"{'█' * filled}{'░' * (width - filled)} {text}"

    def _draw(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        self._stream.write(f"\r\x1b[K{text[: columns - 1]}")
        self._stream.flush()
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._drawn = False


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.asynccontextmanager
async def private_service() -> AsyncIterator[FaceSwap]:
    """Start a private service with the embedded engine on a free port; it and its files are removed afterwards.

    Yields a client of it. Raises `FaceSwapError` with the end of its log when it does not start, or ends too early.
    """
    folder = tempfile.TemporaryDirectory(prefix="faceswap-", ignore_cleanup_errors=True)
    with folder as data_dir, tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "faceswap", "serve", "--watch-stdin"),
            *("--host", "127.0.0.1", "--port", "0", "--data-dir", data_dir),
            env={**os.environ, "FACESWAP_COMFYUI_URLS": "", **PRIVATE},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which cancels the job, then stops the service
        )
        grace_s = STOP_TIMEOUT_S
        try:
            async with FaceSwap(await _listening(process), resumes=PRIVATE_RESUMES) as client:
                yield client
        except FaceSwapError as error:
            if error.status:
                raise
            log.seek(0)
            tail = log.read()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
            raise FaceSwapError(0, error.code, f"{error.detail}\n{tail}") from error
        except asyncio.CancelledError:  # asked to quit at once
            grace_s = QUIT_TIMEOUT_S
            raise
        finally:
            await _stop(process, grace_s)


async def _listening(process: asyncio.subprocess.Process) -> str:
    """Read the address from the line that the service prints when it accepts requests."""
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in process.stdout:
                if found := _LISTENING.search(line.decode(errors="replace")):
                    return found[1]
    raise FaceSwapError(0, "not_started", "The service did not start.")


async def _stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """Stop the service, which stops its engine; after `grace_s` seconds both are killed."""
    try:
        if process.returncode is None:
            terminate(process.pid)
        await wait_within(grace_s, process.wait())
    finally:
        if process.returncode is None:
            kill_group(process.pid)
        await process.wait()
