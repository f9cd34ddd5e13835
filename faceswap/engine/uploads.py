"""Uploads to the engine, streamed to disk as they come, so memory does not grow with them."""

from __future__ import annotations

import asyncio
import filecmp
import itertools
import uuid
from pathlib import Path

from aiohttp import BodyPartReader, web

from .folders import DISK_FULL, Folders, OutsideError

_CHUNK = 1 << 20
_FIELD_BYTES = 4096


class HTTPInsufficientStorage(web.HTTPServerError):
    """507: there is no room for the file."""

    status_code = 507


async def receive(request: web.Request, folders: Folders, limit: int) -> dict[str, str]:
    """Store the file of a `/upload/image` request and answer `{"name", "subfolder", "type"}`.

    The parts may come in any order. A name that is taken by other bytes gets ` (1)`, ` (2)`, …, unless
    `overwrite` is true. Raises 400 for a missing file or a name that leads out, 413 above `limit` bytes, 507 for a
    full disk.
    """
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
    fields: dict[str, str] = {}
    part_file = folders.folder("temp") / f"{uuid.uuid4().hex}.upload"
    try:
        filename = await _read_parts(request, fields, part_file, limit)
        return await asyncio.to_thread(_place, folders, fields, filename, part_file)
    except (OutsideError, ValueError, AssertionError) as error:
        raise web.HTTPBadRequest from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise HTTPInsufficientStorage from error
    finally:
        part_file.unlink(missing_ok=True)


async def _read_parts(request: web.Request, fields: dict[str, str], part_file: Path, limit: int) -> str:
    """Write the file to `part_file` and the other fields to `fields`; return the file's name."""
    filename = ""
    size = 0
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            raise ValueError("parts within parts")
        if part.name != "image":
            fields[part.name or ""] = await _text(part)
            continue
        filename = part.filename or ""
        with part_file.open("wb") as file:
            while chunk := await part.read_chunk(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise web.HTTPRequestEntityTooLarge(limit, size)
                await asyncio.to_thread(file.write, chunk)
    return filename


async def _text(part: BodyPartReader) -> str:
    """Return a field that is no file. Raises ValueError for a long one."""
    value = bytearray()
    while chunk := await part.read_chunk(_FIELD_BYTES):
        value += chunk
        if len(value) > _FIELD_BYTES:
            raise ValueError("a field that is too long")
    return value.decode()


def _place(folders: Folders, fields: dict[str, str], filename: str, part_file: Path) -> dict[str, str]:
    kind, subfolder = fields.get("type") or "input", fields.get("subfolder", "")
    path = folders.file(kind, subfolder, filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fields.get("overwrite") not in ("true", "1"):
        path = _free_name(path, part_file)
    part_file.replace(path)
    return {"name": path.name, "subfolder": subfolder, "type": kind}


def _free_name(path: Path, part_file: Path) -> Path:
    """Return the name itself if it is free or holds the same bytes, else the first numbered one with that property."""
    numbered = (path.with_name(f"{path.stem} ({number}){path.suffix}") for number in itertools.count(1))
    for candidate in itertools.chain([path], numbered):
        if not candidate.exists() or filecmp.cmp(candidate, part_file, shallow=False):
            return candidate
    raise AssertionError("numbers do not end")
