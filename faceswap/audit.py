"""`faceswap audit`: the audit lines of jobs as lines of JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from .config import ConfigError, Settings, resource_dir
from .files import Files
from .jobs import iso
from .store import NewerDatabase, Store, StoreError, find_version


def audit(
    output: TextIO, data_dir: str | None, since: str | None, prompt_id: str | None, say: Callable[[str], None]
) -> int:
    """Print the audit lines from a time on, of all jobs or of one; returns the exit status.

    `say` prints a line for the user.
    """
    try:
        settings = Settings.load(data_dir=data_dir)
        since_ms = _milliseconds(since) if since else 0
    except (ConfigError, ValueError) as error:
        say(str(error))
        return 2
    where = settings.database_url or Files(settings.data_dir).database
    if isinstance(where, Path) and not where.is_file():
        say(f"There is no database {where}; give --data-dir or FACESWAP_DATA_DIR.")
        return 1
    try:
        asyncio.run(_print_lines(output, where, since_ms, prompt_id))
    except (NewerDatabase, StoreError) as error:
        say(str(error))
        return 1
    return 0


def _milliseconds(since: str) -> int:
    """Return a time as Unix time in milliseconds; one without a zone is UTC. Raises ValueError with a sentence."""
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise ValueError(f"--since {since!r}: allowed is a date or a time such as 2026-11-25T22:00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


async def _print_lines(output: TextIO, where: Path | str, since_ms: int, prompt_id: str | None) -> None:
    migrations = resource_dir("migrations")
    version, newest = await find_version(where, migrations)
    if version != newest:
        raise StoreError(
            f"The database is not of this version yet ({newest}); start the service once.", transient=False
        )
    store = await Store.open(where, migrations, lambda event: None)
    try:
        async for line in store.audit_lines(since_ms, prompt_id):
            head = {"number": line.number, "at": iso(line.at), "prompt_id": line.prompt_id, "owner": line.owner}
            output.write(json.dumps({**head, "what": line.what, **line.data}, ensure_ascii=False) + "\n")
    finally:
        await store.close()
