"""The commands that ask a service: faces, jobs, watch, cancel, retry."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import DONE, Server, json_option, run, say, service_options, show_json

if TYPE_CHECKING:
    from ..client import Faces, JobStatus

DEFAULT_LIMIT = 20

_id = click.argument("prompt_id", metavar="ID")
_service = service_options("without it http://127.0.0.1:8000")


@click.command()
@click.argument("file", type=click.Path())
@click.option("--at", type=click.FloatRange(0), metavar="SECONDS", help="The frame of a video to look at (0).")
@click.option(
    "--thumbnails", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Save a picture of each face."
)
@service_options("without it one is started for the work")
@json_option
def faces(file: str, at: float | None, thumbnails: Path | None, server: Server, as_json: bool) -> int:
    """Show the faces in FILE, a picture or a video, with the numbers that `face_index` and `mapping` mean."""
    return run(_faces(file, at, thumbnails, server, as_json))


async def _faces(file: str, at: float | None, thumbnails: Path | None, server: Server, as_json: bool) -> int:
    from .display import display

    with display(sys.stderr) as shown:
        async with server.client_or_private(shown) as client:
            answer = await client.faces(file, at=at)
    if thumbnails is not None:
        _save_thumbnails(answer, thumbnails)
    if as_json:
        show_json(answer)
        return DONE
    rows = [
        (
            str(face["index"]),
            "{:.0f}, {:.0f}".format(*face["box"][:2]),
            "{:.0f} x {:.0f}".format(*face["box"][2:]),
            f"{face['score']:.0%}",
        )
        for face in answer["faces"]
    ]
    if not rows:
        say("no face is found")
    else:
        _print_table(("FACE", "AT", "SIZE", "SURE"), rows)
    return DONE


def _save_thumbnails(answer: Faces, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for face in answer["faces"]:
        picture = base64.b64decode(face["thumbnail"].partition(",")[2])
        (folder / f"face-{face['index']}.jpg").write_bytes(picture)


@click.command()
@click.option("--status", metavar="STATUS", help="Only queued, processing, success, failed or cancelled ones.")
@click.option("--label", metavar="TEXT", help="Only those with this label.")
@click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, help=f"The most to show ({DEFAULT_LIMIT}).")
@_service
@json_option
def jobs(status: str | None, label: str | None, limit: int, server: Server, as_json: bool) -> int:
    """List jobs, the newest first."""
    return run(_jobs(status, label, limit, server, as_json))


async def _jobs(status: str | None, label: str | None, limit: int, server: Server, as_json: bool) -> int:
    async with server.client() as client:
        found = [job async for job in client.jobs(status=status, label=label, limit=limit)]
    if as_json:
        for job in found:
            show_json(job)
    elif found:
        _print_table(("ID", "STATUS", "DONE", "NAME", "STEP"), [_row(job) for job in found])
    return DONE


def _row(job: JobStatus) -> tuple[str, ...]:
    from .tasks import clock

    step = job["error"] or job["progress"]["step"]
    if job["queue_position"] is not None:
        step = f"place {job['queue_position']} in the queue"
        if job["wait_seconds"] is not None:
            step += f", begins in about {clock(job['wait_seconds'])}"
    return job["prompt_id"], job["status"], f"{job['progress']['percentage']:.0f}%", job["output_prefix"], step


@click.command()
@_id
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Save the result to this file.")
@_service
@json_option
def watch(prompt_id: str, output: Path | None, server: Server, as_json: bool) -> int:
    """Show the job ID until it ends. Ctrl-C ends the watching, not the job."""
    return run(_watch(prompt_id, output, server, as_json))


async def _watch(prompt_id: str, output: Path | None, server: Server, as_json: bool) -> int:
    from .batch import follow
    from .display import display

    with display(sys.stderr) as shown:
        async with server.client() as client:
            with shown.task("") as task:
                result = await follow(client, prompt_id, task, cancels=False)
                if output is not None:
                    await client.download(result, output)
        shown.line(f"Saved {output}." if output else f"{result.filename} is ready.")
    if as_json:
        show_json({**asdict(result), "path": str(output) if output else None})
    return DONE


@click.command()
@_id
@_service
def cancel(prompt_id: str, server: Server) -> int:
    """Cancel the job ID."""
    return run(_ask("cancel", prompt_id, server))


@click.command()
@_id
@_service
def retry(prompt_id: str, server: Server) -> int:
    """Queue the failed or cancelled job ID again, from its last finished part on."""
    return run(_ask("retry", prompt_id, server))


async def _ask(what: str, prompt_id: str, server: Server) -> int:
    async with server.client() as client:
        status = await (client.cancel(prompt_id) if what == "cancel" else client.retry(prompt_id))
    print(f"{prompt_id}  {status['status']}  {status['progress']['step']}")
    return DONE


def _print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in columns; on a terminal each fits its line."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*head, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table, markup=False)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


COMMANDS = (faces, jobs, watch, cancel, retry)
