"""`faceswap key`: API keys made, listed and revoked in the database, while the service runs or before it does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from .config import ConfigError, Settings, resource_dir
from .files import Files
from .jobs import iso
from .keyring import NAME_PATTERN, digest, new_key, read_keys
from .store import ApiKey, NewerDatabase, Store, StoreError, find_version

DONE, FAILED, USAGE = 0, 1, 2
ID_CHARS = 12
"""The first digits of a key's SHA-256 by which it is named to people."""
NEW_FILES_MASK = 0o077

Work = Callable[[Store], Awaitable[int]]


def add(options: Mapping[str, str | None], name: str, show: Callable[[str], None], say: Callable[[str], None]) -> int:
    """Make a key for a name and show it, this once; returns the exit status. `say` tells the user more."""
    if not NAME_PATTERN.fullmatch(name):
        say("A name is 1-64 letters, digits, '_' and '-', and begins with a letter or a digit.")
        return USAGE
    key = new_key()

    async def work(store: Store) -> int:
        await store.add_key(digest(key), name)
        return DONE

    status = _run(options, work, say)
    if status == DONE:
        show(key)
        say(f"the key of {name!r} is shown only now; its id is {digest(key)[:ID_CHARS]}")
    return status


def show_list(options: Mapping[str, str | None], show: Callable[[str], None], say: Callable[[str], None]) -> int:
    """Show all keys of the database and of the file, a line each; returns the exit status."""

    async def work(store: Store) -> int:
        for line in _table(await store.api_keys(), _of_file(options)):
            show(line)
        return DONE

    return _run(options, work, say)


def revoke(options: Mapping[str, str | None], name: str, key_id: str, say: Callable[[str], None]) -> int:
    """Revoke all keys of a name, or the one whose id is given; returns the exit status."""

    async def work(store: Store) -> int:
        revoked = await store.revoke_keys(name, key_id.lower())
        if not revoked:
            in_file = name in _of_file(options).values()
            say(
                f"{name!r} has no such key in the database"
                + ("; its key in FACESWAP_API_KEYS_FILE is revoked by removing its line" if in_file else "")
            )
            return FAILED
        say(f"{revoked} {'key' if revoked == 1 else 'keys'} of {name!r} revoked")
        return DONE

    return _run(options, work, say)


def _table(keys: Sequence[ApiKey], of_file: Mapping[str, str]) -> list[str]:
    """Return a line for each key, below a head."""
    rows = [("NAME", "ID", "MADE", "REVOKED")]
    rows += [(key.name, key.sha256[:ID_CHARS], str(iso(key.created_at)), iso(key.revoked_at) or "-") for key in keys]
    rows += [(name, sha256[:ID_CHARS], "in the file", "-") for sha256, name in of_file.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _of_file(options: Mapping[str, str | None]) -> Mapping[str, str]:
    path = Settings.load(None, **options).api_keys_file
    return {} if path is None else read_keys(path)


def _run(options: Mapping[str, str | None], work: Work, say: Callable[[str], None]) -> int:
    """Do something with the database that the settings name; returns the exit status."""
    os.umask(NEW_FILES_MASK)  # as the service has it
    try:
        return asyncio.run(_with_store(Settings.load(None, **options), work, say))
    except ConfigError as error:
        say(str(error))
        return USAGE
    except (NewerDatabase, StoreError, OSError) as error:
        say(f"the database cannot be used: {error}")
        return FAILED


async def _with_store(settings: Settings, work: Work, say: Callable[[str], None]) -> int:
    where, migrations = await asyncio.to_thread(_place, settings), resource_dir("migrations")
    version, newest = await find_version(where, migrations)
    if version is None:
        say(f"there is no database yet in {_name(where)}: it is made now; is it the one that the service uses?")
    elif version < newest:
        say(f"the database in {_name(where)} is of an older version; start the service of this version first")
        return FAILED
    store = await Store.open(where, migrations, lambda event: None)
    try:
        return await work(store)
    finally:
        await store.close()


def _place(settings: Settings) -> Path | str:
    """Return the file or the URL of the database, with the folder there."""
    if settings.database_url:
        return settings.database_url
    files = Files(settings.data_dir)
    files.create()
    return files.database


def _name(where: Path | str) -> str:
    return str(where) if isinstance(where, Path) else "FACESWAP_DATABASE_URL"
