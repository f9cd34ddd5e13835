"""The commands that run a service, or look after one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click

from .common import DONE, USAGE, say

_data_dir = click.option("--data-dir", metavar="DIR", help="Where the service keeps jobs, inputs and results.")
_models_dir = click.option(
    "--models-dir", metavar="DIR", envvar="FACESWAP_MODELS_DIR", help="Where networks lie (models in the data folder)."
)
_file = click.argument("file", type=click.Path(path_type=Path))


@click.command(
    epilog="""\b
Examples:
  faceswap serve
  faceswap serve --port 9000 --comfyui-url http://127.0.0.1:8188 --comfyui-url http://gpu-2:8188

Everything else is set by FACESWAP_... variables; docs/settings.md lists them."""
)
@click.option("--host", help="Address to listen on (127.0.0.1).")
@click.option("--port", help="Port to listen on, 0 for a free one (8000).")
@_data_dir
@click.option("--comfyui-url", metavar="URL", multiple=True, help="A ComfyUI server, repeatable; without: the engine.")
@click.option("--allow-anonymous", is_flag=True, help="Listen on other than loopback without API keys.")
@click.option("--watch-stdin", is_flag=True, hidden=True)
def serve(
    host: str | None,
    port: str | None,
    data_dir: str | None,
    comfyui_url: tuple[str, ...],
    allow_anonymous: bool,
    watch_stdin: bool,
) -> int:
    """Run the service."""
    from ..config import ConfigError, Settings

    try:
        settings = Settings.load(
            host=host,
            port=port,
            data_dir=data_dir,
            comfyui_urls=",".join(comfyui_url) or None,
            allow_anonymous="1" if allow_anonymous else None,
        )
    except ConfigError as error:
        say(str(error))
        return USAGE
    if watch_stdin:
        threading.Thread(target=_stop_with_stdin, name="watch stdin", daemon=True).start()
    from ..serve import serve

    return serve(settings)


def _stop_with_stdin() -> None:
    """Stop this process once the process at the other end of its standard input has ended in any way."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", help="Port to listen on.")
@click.option("--data-dir", metavar="DIR", help="Where its inputs and outputs are kept.")
@_models_dir
@click.option("--no-token", is_flag=True, help="Let every user of this machine in; on loopback only.")
def engine(host: str | None, port: str | None, data_dir: str | None, models_dir: str | None, no_token: bool) -> int:
    """Run the embedded engine alone, a small server like ComfyUI."""
    from ..config import default_data_dir

    data_dir = data_dir or str(default_data_dir(os.environ) / "engine-alone")
    chosen = {"--host": host, "--port": port, "--data-dir": data_dir, "--models-dir": models_dir}
    words = [word for name, value in chosen.items() if value is not None for word in (name, value)]
    words += ["--no-token"] if no_token else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "faceswap.engine", *words])


@click.command(
    epilog="""Networks are not part of this package; most may be used for research only. A name of a workflow whose file
is not there means the built-in swapper. docs/settings.md tells where to put them.

\b
Examples:
  faceswap models
  faceswap models --models-dir ~/ComfyUI/models"""
)
@_data_dir
@_models_dir
def models(data_dir: str | None, models_dir: str | None) -> int:
    """List the networks for the embedded engine: found, unusable or missing, and their licences."""
    from ..config import ConfigError, Settings

    try:
        folder = Settings.load(data_dir=data_dir, models_dir=models_dir).models_folder
    except ConfigError as error:
        say(str(error))
        return USAGE
    sys.stdout.flush()
    command = (sys.executable, "-m", "faceswap.engine", "--list-networks", "--models-dir", str(folder))
    return subprocess.call(command)


@click.command()
@_data_dir
@click.option("--comfyui-url", metavar="URL", multiple=True, help="A ComfyUI server, repeatable.")
def doctor(data_dir: str | None, comfyui_url: tuple[str, ...]) -> int:
    """Check all that a job needs, and say what is missing."""
    from ..doctor import doctor

    return doctor({"data_dir": data_dir, "comfyui_urls": ",".join(comfyui_url) or None}, print)


@click.command()
@_file
@_data_dir
def backup(file: Path, data_dir: str | None) -> int:
    """Copy the database to FILE while the service runs. FILE is replaced at once when the copy is whole."""
    from ..backup import backup

    return backup(file, data_dir, say)


@click.command()
@click.option("--since", metavar="TIME", help="From this date or time on, in UTC: 2026-11-25T22:00:00Z.")
@click.option("--job", metavar="ID", help="Of this job only.")
@_data_dir
def audit(since: str | None, job: str | None, data_dir: str | None) -> int:
    """Print what happened to jobs, as lines of JSON."""
    from ..audit import audit

    try:
        return audit(sys.stdout, data_dir, since, job, say)
    except BrokenPipeError:  # such as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _default_database() -> str:
    from ..config import default_data_dir

    return f"sqlite:{default_data_dir(os.environ) / 'faceswap.db'}"


@click.command(
    epilog="""Stop the service first. The copy is made whole and compared with the original, or nothing is kept; the
original stays as it is. Give the URL of PostgreSQL in FACESWAP_DATABASE_URL if it has a password: others can read a
command line. Files are copied where --files is given, before the jobs; a second try copies them again.

\b
Examples:
  FACESWAP_DATABASE_URL=postgresql://faceswap:secret@db/faceswap faceswap migrate
  faceswap migrate --from sqlite:/var/lib/faceswap/faceswap.db --to postgresql://faceswap@db/faceswap --files s3://bucket
"""
)
@click.option("--from", "source", metavar="DATABASE", help="sqlite:/path/faceswap.db, or postgresql://…")
@click.option("--to", "target", metavar="DATABASE", help="As before; has no jobs yet.")
@click.option("--files", metavar="URL", help="Copy files too: s3://bucket/prefix, or a folder.")
def migrate(source: str | None, target: str | None, files: str | None) -> int:
    """Copy all jobs into another database."""
    target = target or os.environ.get("FACESWAP_DATABASE_URL")
    if not target:
        raise click.UsageError("Give --to, or FACESWAP_DATABASE_URL.")
    from ..migrate import migrate

    return migrate(source or _default_database(), target, files, say)


@click.command(
    epilog="""Shows the metadata tag, the content credentials (C2PA) and the watermark. Exit status: 0 the file says
that a model made or changed it, 1 it does not or its credentials are invalid, 2 it cannot be read."""
)
@_file
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def verify(file: Path, as_json: bool) -> int:
    """Show what a video says of its making."""
    from ..provenance import verify

    return verify(file, as_json=as_json)


@click.group(
    epilog="""A running service notices within seconds. Jobs belong to the name: several keys may have it, to change one
for another. Once there is a key, nobody is let in without one, also when the last was revoked.

\b
Examples:
  faceswap key add alice
  faceswap key list
  faceswap key revoke alice --id 3fa1b2c4d5e6
"""
)
def key() -> None:
    """Make, list and revoke API keys."""


@key.command("add")
@click.argument("name")
@_data_dir
def key_add(name: str, data_dir: str | None) -> int:
    """Make a key of NAME, the owner of the jobs that are made with it, and print it, this once."""
    from .. import key_command

    return key_command.add({"data_dir": data_dir}, name, print, say)


@key.command("list")
@_data_dir
def key_list(data_dir: str | None) -> int:
    """List all keys, without showing any."""
    from .. import key_command

    return key_command.show_list({"data_dir": data_dir}, print, say)


@key.command("revoke")
@click.argument("name")
@click.option("--id", "key_id", default="", help="Of the one key that is meant, as listed; without: all.")
@_data_dir
def key_revoke(name: str, key_id: str, data_dir: str | None) -> int:
    """Let the keys of NAME in no more."""
    from .. import key_command

    return key_command.revoke({"data_dir": data_dir}, name, key_id, say)


COMMANDS = (serve, engine, models, doctor, verify, key, backup, audit, migrate)
