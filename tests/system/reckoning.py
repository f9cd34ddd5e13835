"""Checks after a chaos run: of every job, its events, the database, and every file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import unquote

from clips import read_numbers
from processes import Engine, files_in
from system.book import ENDS, Book, differing_events, durable, frames_of, story_faults
from system.records import Row
from system.stored_files import missing_and_left
from system.world import World
from waiting import eventually

from faceswap.client import FaceSwap, FaceSwapError, JobEvent, JobStatus

POLL_S = 0.5
LATER_S = 12 * 3600
"""The time by which clocks are put forward: by a wrong clock, a job may have ended in what is the future by now."""
TIDY_S = 90.0
"""For what is due to be erased after a start."""


async def still_open(world: World) -> list[str]:
    """Return the jobs that have not ended, also those of which no user was told."""
    found = await world.records.rows("SELECT prompt_id FROM job WHERE finished_at IS NULL")
    return [row["prompt_id"] for row in found]


async def status_of(client: FaceSwap, prompt_id: str) -> JobStatus:
    """Return a job's status, as soon as the node can tell it."""

    async def told() -> JobStatus | None:
        try:
            return await client.status(prompt_id)
        except FaceSwapError as error:
            if error.status not in (0, 503):
                raise
            return None

    status: JobStatus = await eventually(told)
    return status


async def check_jobs(book: Book, world: World, folder: Path) -> None:
    """Check that each promised job has ended rightly, with the right last event and a whole result.

    Every node is asked for its state; the nodes take turns at the events and the results.
    """
    known = {row["prompt_id"]: row for row in await world.records.rows("SELECT * FROM job")}
    for prompt_id in sorted(book.promised - book.erased - known.keys()):
        book.violated(f"{prompt_id} was promised and is not known")
    for prompt_id in sorted(book.erased & known.keys()):
        book.violated(f"{prompt_id} was erased and is still known")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(FaceSwap(await node.url())) for node in world.nodes]
        for number, prompt_id in enumerate(sorted(known)):
            told = [await status_of(client, prompt_id) for client in clients]
            status, state = told[0], known[prompt_id]["state"]
            if {document["status"] for document in told} != {state}:
                book.violated(f"{prompt_id} is {state} in the database, and /status says {told}")
            book.ended[state] += 1
            if state not in ENDS:
                book.violated(f"{prompt_id} has not ended: {status['progress']}, {status['segments']}")
                continue
            await _check_events(book, world, clients[number % len(clients)], status)
            if state == "SUCCESS":
                await _check_result(book, clients[(number + 1) % len(clients)], status, folder / "result.mp4")
            elif state != "CANCELLED" or prompt_id not in book.cancelled:
                book.violated(f"{prompt_id} ended {state}, {status['code']}: {status['error']}")


async def _check_events(book: Book, world: World, client: FaceSwap, status: Row) -> None:
    """Check that stored, replayed and live events are the same, in order, and end as `/status` says."""
    prompt_id = status["prompt_id"]
    whole: list[JobEvent] = [event async for event in client.events(prompt_id)]
    for fault in story_faults(whole):
        book.violated(f"{prompt_id}, its events: {fault}")
    if whole[-1].type != ENDS[status["status"]]:
        book.violated(f"{prompt_id} is {status['status']}, its last event is {whole[-1].type}")
    stored = [
        (str(row["seq"]), row["type"], json.loads(row["data"]))
        for row in await world.records.rows(f"SELECT * FROM event WHERE prompt_id = '{prompt_id}' ORDER BY seq")
    ]
    if [(event.id, event.type, event.data) for event in whole] != stored:
        book.violated(f"{prompt_id}: replay {whole} differs from what is stored: {stored}")
    stories = book.heard.get(prompt_id, [])
    for heard in stories:
        for fault in story_faults(heard):
            book.violated(f"{prompt_id}, as heard live: {fault}")
        if durable(heard) != durable(whole)[: len(durable(heard))]:
            book.violated(f"{prompt_id}: live {durable(heard)} differs from replay {durable(whole)}")
    for fault in differing_events([whole, *stories]):
        book.violated(f"{prompt_id}: {fault}")


async def _check_result(book: Book, client: FaceSwap, status: Row, result: Path) -> None:
    filename = unquote(status["result"].removeprefix("/download/"))
    try:
        await client.download(filename, result, sha256=status["sha256"])
    except FaceSwapError as error:
        book.violated(f"{filename} is not whole: {error.detail}")
        return
    frames = frames_of(status["output_prefix"])
    numbers = await asyncio.to_thread(read_numbers, result)
    if numbers != list(range(frames)):
        book.violated(f"{status['prompt_id']} has the frames {numbers} instead of {frames}")


async def check_files(book: Book, world: World) -> None:
    """Check that every stored file belongs to a job, and every file of a job is there."""
    book.violations += await _lasting(lambda: file_faults(world))


async def _lasting(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """Return the faults that are left when they have not become fewer for a while."""
    faults = await look()
    deadline = time.monotonic() + TIDY_S
    while faults and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
        found = await look()
        if len(found) < len(faults):
            deadline = time.monotonic() + TIDY_S
        faults = found
    return faults


async def file_faults(world: World) -> list[str]:
    """Files that are missing, and files that belong to nothing."""
    rows, files = world.records.rows, world.files
    kept = "SELECT input.prompt_id, file FROM input JOIN job USING (prompt_id) WHERE inputs_erased = 0"
    inputs = await rows(kept)
    needed = {files.input(row) for row in inputs}
    results = "SELECT * FROM job WHERE result_file IS NOT NULL AND result_erased = 0"
    needed |= {files.result(job) for job in await rows(results)}
    # What was finished of a job that did not succeed is kept for a retry.
    allowed = {name for row in inputs for name in files.scratch(row["prompt_id"])}
    return missing_and_left(await files.names(), needed, allowed)


async def check_erasure(book: Book, world: World) -> None:
    """Check that nothing but results is left when inputs are to be kept for no time."""
    for node in world.nodes:
        await node.stop()
        node.service.set(input_ttl_s=0)
        node.clock.write_text(str(LATER_S))
        await node.start()
    results = "SELECT * FROM job WHERE result_file IS NOT NULL AND result_erased = 0"
    needed = {world.files.result(job) for job in await world.records.rows(results)}

    async def look() -> list[str]:
        return missing_and_left(await world.files.names(), needed, set())

    book.violations += [f"after the inputs' time: {fault}" for fault in await _lasting(look)]


def check_engine_files(book: Book, engine: Engine) -> None:
    """Check that an engine keeps no partial file."""
    for name in files_in(engine.data_dir):
        if name.endswith((".upload", ".part", ".part.mp4")):
            book.violated(f"{name} was left in an engine")
