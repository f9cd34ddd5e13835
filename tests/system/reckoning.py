"""Checks after a chaos run: of every job, its events, the database, and every file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clips import read_numbers
from processes import Engine, Service, files_in
from system.book import ENDS, Book, durable, frames_of, story_faults

from faceswap.client import ClientError, FaceSwapClient, JobEvent

Row = dict[str, Any]

POLL_S = 0.5
TIDY_S = 30.0
"""For what is due to be erased after a start."""


def rows(service: Service, sql: str) -> list[Row]:
    """Rows of the service's database, read beside it."""
    with contextlib.closing(sqlite3.connect(service.data_dir / "faceswap.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(sql)]


async def still_open(service: Service) -> list[str]:
    """Return the jobs that have not ended, also those of which no user was told."""
    while True:
        try:
            found = rows(service, "SELECT prompt_id FROM job WHERE finished_at IS NULL")
            return [row["prompt_id"] for row in found]
        except sqlite3.OperationalError:  # the disk is full, or the service is just killed
            await asyncio.sleep(POLL_S)


async def check_jobs(book: Book, service: Service, folder: Path) -> None:
    """Check that each promised job has ended rightly, with the right last event and a whole result."""
    known = {row["prompt_id"] for row in rows(service, "SELECT prompt_id FROM job")}
    for prompt_id in sorted(book.promised - book.erased - known):
        book.violated(f"{prompt_id} was promised and is not known")
    for prompt_id in sorted(book.erased & known):
        book.violated(f"{prompt_id} was erased and is still known")
    async with FaceSwapClient(service.url) as client:
        for prompt_id in sorted(known):
            status = await client.status(prompt_id)
            book.ended[status["status"]] += 1
            if status["status"] not in ENDS:
                book.violated(f"{prompt_id} has not ended: {status['progress']}, {status['segments']}")
                continue
            await _check_events(book, client, status)
            if status["status"] == "SUCCESS":
                await _check_result(book, client, status, folder / "result.mp4")
            elif status["status"] != "CANCELLED" or prompt_id not in book.cancelled:
                book.violated(f"{prompt_id} ended {status['status']}, {status['code']}: {status['error']}")


async def _check_events(book: Book, client: FaceSwapClient, status: Row) -> None:
    """Check that replayed and live events are in order and end as `/status` says."""
    prompt_id = status["prompt_id"]
    whole: list[JobEvent] = [event async for event in client.watch(prompt_id)]
    for fault in story_faults(whole):
        book.violated(f"{prompt_id}, its events: {fault}")
    if whole[-1].type != ENDS[status["status"]]:
        book.violated(f"{prompt_id} is {status['status']}, its last event is {whole[-1].type}")
    heard = book.heard.get(prompt_id)
    if heard is not None:
        for fault in story_faults(heard):
            book.violated(f"{prompt_id}, as heard live: {fault}")
        if durable(heard) != durable(whole)[: len(durable(heard))]:
            book.violated(f"{prompt_id}: live {durable(heard)} differs from replay {durable(whole)}")


async def _check_result(book: Book, client: FaceSwapClient, status: Row, result: Path) -> None:
    filename = unquote(status["result"].removeprefix("/download/"))
    try:
        await client.download(filename, result, sha256=status["sha256"])
    except ClientError as error:
        book.violated(f"{filename} is not whole: {error.detail}")
        return
    frames = frames_of(status["output_prefix"])
    numbers = await asyncio.to_thread(read_numbers, result)
    if numbers != list(range(frames)):
        book.violated(f"{status['prompt_id']} has the frames {numbers} instead of {frames}")


def check_database(book: Book, service: Service) -> None:
    """Check that the database is whole; called when the service has stopped."""
    for pragma, right in (("integrity_check", [{"integrity_check": "ok"}]), ("foreign_key_check", [])):
        found = rows(service, f"PRAGMA {pragma}")
        if found != right:
            book.violated(f"{pragma}: {found}")


async def check_files(book: Book, service: Service) -> None:
    """Check that every file in the data folder belongs to a job, and every file of a job is there."""
    deadline = time.monotonic() + TIDY_S
    while (faults := file_faults(service)) and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
    book.violations += faults


def file_faults(service: Service) -> list[str]:
    """Files that are missing, and files that belong to nothing."""
    needed, allowed = set(), set()
    kept = "SELECT input.prompt_id, file FROM input JOIN job USING (prompt_id) WHERE NOT inputs_erased"
    for row in rows(service, kept):
        needed.add(f"inputs/{row['prompt_id']}/{row['file']}")
    for job in rows(service, "SELECT * FROM job"):
        if job["result_file"] and not job["result_erased"]:
            needed.add(f"outputs/{job['result_file']}")
    # What was finished of a job that did not succeed is kept for a retry.
    for row in rows(service, "SELECT prompt_id, output_file FROM segment WHERE output_file IS NOT NULL"):
        allowed.add(f"work/{row['prompt_id']}/{row['output_file']}")
    found = {name for name in service.files() if not name.startswith("lost+found/")}
    missing = [f"{name} is missing" for name in sorted(needed - found)]
    return missing + [f"{name} belongs to nothing" for name in sorted(found - needed - allowed)]


def check_engine_files(book: Book, engine: Engine) -> None:
    """Check that an engine keeps no partial file."""
    for name in files_in(engine.data_dir):
        if name.endswith((".upload", ".part", ".part.mp4")):
            book.violated(f"{name} was left in an engine")
