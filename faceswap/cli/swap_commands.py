"""The commands that swap: `swap` for one clip or a folder of them, `run` for a manifest."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import Options
from .common import (
    API_KEY_VARIABLE,
    DONE,
    FAILED,
    MAX_JOBS,
    Server,
    json_option,
    run,
    say,
    service_options,
    show_json,
    usage_errors,
)

if TYPE_CHECKING:
    from .batch import Outcome
    from .clips import Clip

JOBS_AT_ONCE = 2
"""One is worked on while the next is sent."""

PRIVATE_SERVICE = "private"
"""The name of the private service in the record of a batch."""
PRIVATE_DATA = ".faceswap-service"
"""The folder of a private service of a batch, beside the results until all of them are there."""


class _Option(click.ParamType[tuple[str, Any]]):
    """`name=value`, with the value as JSON where it is JSON, else as text."""

    name = "option"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


_jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, MAX_JOBS),
    metavar="N",
    help=f"Clips under way at a time ({JOBS_AT_ONCE}).",
)


@click.command(
    epilog=f"""\b
Examples:
  faceswap swap --image face.jpg --video clip.mp4 -o swapped.mp4
  faceswap swap --image face.jpg clip.mp4 -o swapped.gif --option start=2 --option end=5
  faceswap swap --image face.jpg clips/*.mp4 -o out/ --jobs 4
  faceswap swap --image https://example.org/face.jpg --video clip.mp4 -o swapped.mp4 --url http://127.0.0.1:8000

Several clips, or an OUT that is a folder, are a batch: called again it goes on where it stopped, and does nothing
twice.

A server that asks for a key finds it in the environment variable {API_KEY_VARIABLE}, or is given it by --key, which
others on this machine can read.

Workflow options: {", ".join(option.name for option in fields(Options))}."""
)
@click.option(
    "--image",
    "images",
    multiple=True,
    required=True,
    metavar="FACE",
    help="Picture of the face: a file or an address; repeatable.",
)
@click.option(
    "--video", "videos", multiple=True, metavar="CLIP", help="Video or picture to change, as the arguments are."
)
@click.argument("clips", nargs=-1, metavar="[CLIP]...", type=click.Path())
@click.option(
    "-o", "--output", required=True, metavar="OUT", type=click.Path(), help="File to save the result to, or a folder."
)
@click.option(
    "--option", "options", multiple=True, type=_Option(), metavar="K=V", help="A workflow option, repeatable."
)
@click.option("--consent", metavar="TEXT", help="A text or reference that says that the person shown has agreed.")
@click.option("--label", metavar="TEXT", help="A text of your own to find the job by.")
@_jobs_option
@service_options("without it one is started for the work")
@json_option
def swap(
    images: tuple[str, ...],
    videos: tuple[str, ...],
    clips: tuple[str, ...],
    output: str,
    options: tuple[tuple[str, Any], ...],
    consent: str | None,
    label: str | None,
    jobs: int | None,
    server: Server,
    as_json: bool,
) -> int:
    """Swap faces in a video or picture, or in many."""
    from .clips import Clip, check_inputs, with_format

    sources = [*videos, *clips]
    if not sources:
        raise click.UsageError("Give a clip: a file or an address.")
    into_folder = len(sources) > 1 or output.endswith("/") or Path(output).is_dir()
    with usage_errors():
        chosen = dict(options) if into_folder else with_format(dict(options), output)
        chosen = Options.parse(chosen).to_dict()
        work = [Clip(source, images, chosen, None, label, consent) for source in sources]
        check_inputs(work)
        if not into_folder:
            _check_file(Path(output))
            return run(_swap_one(work[0], Path(output), server, as_json))
        folder = _made_folder(Path(output))
    return run(_swap_all(work, folder, jobs or JOBS_AT_ONCE, server, as_json))


@click.command("run", epilog="docs/command_line.md describes the manifest.")
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_jobs_option
@service_options("without it the manifest's, or one is started for the work")
@json_option
def run_manifest(manifest: Path, jobs: int | None, server: Server, as_json: bool) -> int:
    """Run the batch that MANIFEST, a TOML file, describes."""
    from .clips import check_inputs
    from .manifest import read_manifest

    with usage_errors():
        batch = read_manifest(manifest)
        check_inputs(batch.clips)
        folder = _made_folder(batch.output)
    server = Server(server.url or batch.url, server.key)
    return run(_swap_all(batch.clips, folder, jobs or batch.jobs or JOBS_AT_ONCE, server, as_json))


def _check_file(output: Path) -> None:
    if output.exists() and not output.is_file():
        raise ValueError(f"The output {output} is there already and is not a file.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"The folder of the output {output} is not there.")


def _made_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    return folder


async def _swap_one(clip: Clip, output: Path, server: Server, as_json: bool) -> int:
    from ..client import FaceSwapError
    from .batch import Outcome, swap_one
    from .display import display

    with display(sys.stderr) as shown:
        try:
            async with server.client_or_private(shown) as client:
                outcome = await swap_one(client, clip, output, shown)
        except FaceSwapError as error:
            if as_json:
                show_json(asdict(Outcome.of_error(clip, error)))
            raise
        outcome.tell(shown)
    if as_json:
        show_json(asdict(outcome))
    return DONE


async def _swap_all(clips: Sequence[Clip], folder: Path, jobs: int, server: Server, as_json: bool) -> int:
    import asyncio

    from .batch import TRIES, Batch, Outcome
    from .clips import stems
    from .display import display
    from .record import Record, RecordError

    ends = {"SUCCESS": 0, "FAILED": 0, "SKIPPED": 0}
    data_dir = folder / PRIVATE_DATA
    with contextlib.ExitStack() as stack:
        try:
            record = stack.enter_context(Record(folder))
        except RecordError as error:
            say(str(error))
            return FAILED
        shown = stack.enter_context(display(sys.stderr))

        def tell(outcome: Outcome) -> None:
            ends[outcome.status] += 1
            outcome.tell(shown)
            shown.count(ends["SUCCESS"] + ends["SKIPPED"], ends["FAILED"], len(clips))
            if as_json:
                show_json(asdict(outcome))

        shown.count(0, 0, len(clips))
        left = [clip for clip in clips if not record.is_done(clip)]
        for clip in clips:
            if clip not in left:
                tell(Outcome(clip.video, "SKIPPED", str(record.result(clip))))
        if left:
            async with server.client_or_private(shown, data_dir) as client:
                await client.health()  # tells now, not after many tries, that there is no service
                name, tries = (client.url, TRIES) if server.url else (PRIVATE_SERVICE, 0)
                try:
                    await Batch(client, name, record, stems(clips), shown, tries=tries).run(left, jobs, tell)
                except asyncio.CancelledError:
                    shown.line("Stopped; the same command goes on where it was.")
                    raise
    if not ends["FAILED"]:
        shutil.rmtree(data_dir, ignore_errors=True)
    before = f", {ends['SKIPPED']} done before" if ends["SKIPPED"] else ""
    say(f"{ends['SUCCESS']} done{before}, {ends['FAILED']} failed")
    return FAILED if ends["FAILED"] else DONE


COMMANDS = (swap, run_manifest)
