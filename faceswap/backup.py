"""`faceswap backup`: a consistent copy of the database while the service runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import ConfigError, Settings
from .files import Files
from .store import StoreError, copy_database


def backup(target: Path, data_dir: str | None, say: Callable[[str], None]) -> int:
    """Copy the database of the settings to a file; returns the exit status. `say` prints a line for the user."""
    try:
        settings = Settings.load(data_dir=data_dir)
    except ConfigError as error:
        say(str(error))
        return 2
    if settings.database_url:
        say("FACESWAP_DATABASE_URL names a PostgreSQL, which has its own way: pg_dump --format=custom --file=FILE URL")
        return 2
    database = Files(settings.data_dir).database
    try:
        if not database.is_file():
            raise FileNotFoundError(f"There is no database {database}; give --data-dir or FACESWAP_DATA_DIR.")
        copy_database(database, target.absolute())
    except (OSError, StoreError) as error:
        say(f"Nothing was written. {error}")
        return 1
    say(f"copied {database} to {target}; the files of jobs beside it are not in there")
    return 0
