"""Links that are good for a time without a key: a path, when it ends, and a signature over both and the job. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import unquote, urlencode

EXPIRES, SIGNATURE = "expires", "signature"
"""The names of a link's parameters."""
SECRET_NAME = "links"
"""The name of the secret that links are signed with, in the database."""


def signed(secret: bytes, path: str, prompt_id: str, expires: int) -> str:
    """Return the path of something of a job, as it stands in a URL, with what lets anybody in until `expires`.

    That is in Unix seconds.
    """
    query = {EXPIRES: expires, SIGNATURE: _signature(secret, unquote(path), prompt_id, str(expires))}
    return f"{path}?{urlencode(query)}"


def signed_job(secret: bytes, path: str, query: Mapping[str, str], prompt_ids: Iterable[str]) -> str | None:
    """Return which of these jobs a link was signed for, its `path` decoded; None where it was signed for none."""
    found = None
    for prompt_id in prompt_ids:
        expected = _signature(secret, path, prompt_id, query.get(EXPIRES, ""))
        if hmac.compare_digest(expected.encode(), query.get(SIGNATURE, "").encode("utf-8", "replace")):
            found = prompt_id
    return found


def _signature(secret: bytes, path: str, prompt_id: str, expires: str) -> str:
    message = "\n".join((path, prompt_id, expires)).encode("utf-8", "replace")
    return hmac.digest(secret, message, "sha256").hex()
