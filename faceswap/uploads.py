"""Uploads that can be resumed, as tus 1.0 has them: what is known of one, and the checks of what clients say. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

from .errors import BadRequest
from .jobs import iso

METADATA_LIMIT = 4096
"""The most characters of the metadata that a client gives with an upload."""
_KEY = re.compile(r"[!-+\--~]{1,255}")
"""A key of the metadata: printable ASCII without comma or space."""
_COUNT = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Part:
    """A run of an upload's bytes, stored under a name that no other writer uses. `size` in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as the database holds it. Sizes are bytes, times Unix milliseconds.

    `parts` are its bytes so far, in order. `sha256`, hexadecimal, is known of what was received in one go. `metadata`
    is the client's own.
    """

    id: str
    owner: str | None
    length: int
    received: int
    parts: tuple[Part, ...]
    sha256: str | None
    metadata: str
    created_at: int
    expires_at: int

    @property
    def is_whole(self) -> bool:
        """True when all bytes have arrived."""
        return self.received == self.length

    def to_dict(self) -> dict[str, Any]:
        """Return what is told of it."""
        return {
            "id": self.id,
            "length": self.length,
            "offset": self.received,
            "created_at": iso(self.created_at),
            "expires_at": iso(self.expires_at),
        }


def parse_length(text: str | None) -> int:
    """Return the bytes that an `Upload-Length` header tells; raises `BadRequest`."""
    if text is None or not _COUNT.fullmatch(text):
        raise BadRequest("'Upload-Length' must be a whole number of bytes.", code="invalid_upload_length")
    return int(text)


def parse_offset(text: str | None) -> int:
    """Return the bytes that an `Upload-Offset` header tells; raises `BadRequest`."""
    if text is None or not _COUNT.fullmatch(text):
        raise BadRequest("'Upload-Offset' must be a whole number of bytes.", code="invalid_upload_offset")
    return int(text)


def check_metadata(text: str) -> str:
    """Return an `Upload-Metadata` header: pairs of a key and a Base64 value; raises `BadRequest`."""
    keys = [_checked_key(pair) for pair in text.split(",")] if text else []
    if len(text) > METADATA_LIMIT or len(set(keys)) < len(keys):
        raise _wrong_metadata()
    return text


def _checked_key(pair: str) -> str:
    key, _, value = pair.strip(" ").partition(" ")
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong_metadata() from None
    if not _KEY.fullmatch(key):
        raise _wrong_metadata()
    return key


def _wrong_metadata() -> BadRequest:
    return BadRequest(
        f"'Upload-Metadata' must be pairs of a key, each once, and a Base64 value, with commas between; at most"
        f" {METADATA_LIMIT:,} characters.",
        code="invalid_upload_metadata",
    )
