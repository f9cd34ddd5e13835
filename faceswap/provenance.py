"""`faceswap verify`: what a file says of its making."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .errors import Problem
from .media import Credentials, MediaWorker, Provenance

GENERATED = "trainedalgorithmicmedia"
"""Part of each of IPTC's types, in small letters, for what a trained model made or changed."""
FOUND, NOT_FOUND, UNUSABLE = 0, 1, 2


def verify(path: Path, *, as_json: bool) -> int:
    """Print what a file says of its making.

    Returns 0 if it says that a model made or changed it, 1 if it does not or if its credentials do not hold, 2 if it
    cannot be read.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError
        provenance = asyncio.run(_examine(path.absolute()))
    except (Problem, OSError) as error:
        reason = error.detail if isinstance(error, Problem) else "It is not there, or cannot be read."
        print(f"faceswap: {path}: {reason}", file=sys.stderr)
        return UNUSABLE
    if as_json:
        print(json.dumps(asdict(provenance)))
    else:
        print("\n".join(_lines(provenance)))
    return FOUND if _is_generated(provenance) else NOT_FOUND


async def _examine(path: Path) -> Provenance:
    async with MediaWorker() as media:
        return await media.examine(path)


def _is_generated(provenance: Provenance) -> bool:
    tag, credentials = provenance.tag, provenance.credentials
    if credentials.state == "invalid":
        return False
    types = [*([tag.source_type] if tag else []), *credentials.source_types]
    return provenance.watermark is not None or any(GENERATED in source_type.lower() for source_type in types)


def _lines(provenance: Provenance) -> list[str]:
    tag, mark = provenance.tag, provenance.watermark
    drawn = f"{mark}, of the job {mark[:8]}-{mark[8:12]}-{mark[12:]}-…" if mark else "none"
    told = "none"
    if tag:
        told = ", ".join(filter(None, [tag.source_type, tag.software, f"job {tag.prompt_id}" if tag.prompt_id else ""]))
    return [
        f"metadata:    {_printable(told)}",
        f"credentials: {_printable(_credentials(provenance.credentials))}",
        f"watermark:   {drawn}",
    ]


def _credentials(credentials: Credentials) -> str:
    match credentials.state:
        case "none":
            return "none"
        case "unknown":
            return "not looked for: pip install 'faceswap[c2pa]'"
        case "invalid":
            return "INVALID: the file is not what was signed"
    return ", ".join(
        [
            f"valid, signed by {credentials.signer or 'a certificate without a name'} (look whether you trust it)",
            *credentials.source_types,
            f"made of {credentials.ingredients} file{'' if credentials.ingredients == 1 else 's'}",
        ]
    )


def _printable(text: str) -> str:
    """Return a text of a stranger's file without what could move the cursor of a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
