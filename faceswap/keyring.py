"""The API keys that are let in: those of a file and those of the database, looked at again every few seconds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from .config import ConfigError
from .store import Store, StoreError

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks at the file and the database."""
READ_S = 5.0
"""The longest that is waited for the file: a network's disk may not answer, and the database is to be looked at."""
KEY_PREFIX = "fsk_"
"""The beginning of every key that is made here, by which programs that search for leaked secrets find them."""
KEY_BYTES = 32
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""The name of a key: the owner of jobs, and the folder of their results. Without a point no result has it too."""
LINE_PATTERN = re.compile(rf"({NAME_PATTERN.pattern})\s*:\s*([0-9a-fA-F]{{64}})")
MAX_FILE_BYTES = 16 * 1024 * 1024


def new_key() -> str:
    """Make a key."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> str:
    """Return the SHA-256 of a key, hexadecimal, which is all that is kept of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> dict[str, str]:
    """Read a file of lines `name:sha256`; returns the names by the digests.

    Empty lines, and those that begin with `#`, do not count. Raises `ConfigError`.
    """
    try:
        if not path.is_file():  # opening another kind of file may wait for ever
            raise ConfigError(f"FACESWAP_API_KEYS_FILE={str(path)!r} is not there, or is not a file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"FACESWAP_API_KEYS_FILE={str(path)!r} is larger than {MAX_FILE_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"FACESWAP_API_KEYS_FILE={str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"FACESWAP_API_KEYS_FILE={str(path)!r} is not UTF-8 text") from error
    names: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        parts = LINE_PATTERN.fullmatch(line)
        if parts is None:
            raise ConfigError(
                f"FACESWAP_API_KEYS_FILE={str(path)!r}, line {number}: allowed is name:sha256, a name of up to 64"
                " letters, digits, '_' and '-', and the 64 hexadecimal digits of the key's SHA-256"
            )
        if names.setdefault(parts[2].lower(), parts[1]) != parts[1]:
            raise ConfigError(f"FACESWAP_API_KEYS_FILE={str(path)!r}, line {number}: another name has this key")
    return names


class Keyring:
    """The names of the keys that are let in, as file and database had them at the last look.

    What cannot be read is told in the log, and what was read last goes on to count.
    """

    def __init__(self, path: Path | None, store: Store) -> None:
        self._path = path
        self._store = store
        self._of_file: Mapping[str, str] = {}
        self._of_database: Mapping[str, str] = {}
        self._secret = secrets.token_bytes(KEY_BYTES)
        self._names: Mapping[bytes, str] = {}
        self._reading: asyncio.Task[dict[str, str]] | None = None
        self._told = ""
        self.is_required = path is not None
        """True once there is a key, or was one: nobody is let in without one from then on."""

    async def load(self) -> None:
        """Look at the file and the database. Raises `ConfigError`, `StoreError`."""
        await self._look_at_file()
        await self._look_at_database()

    async def run(self) -> None:
        """Look again and again, for as long as the service runs."""
        while True:
            await asyncio.sleep(LOOK_S)
            problems = []
            try:
                await self._look_at_file()
            except ConfigError as error:
                problems.append(str(error))
            try:
                await self._look_at_database()
            except StoreError as error:
                if not error.transient:
                    raise
                problems.append(f"the keys in the database cannot be looked at: {error}")
            self._tell("; ".join(problems))

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, None for one that nobody has.

        Digests are looked up under a secret of this process: the time that takes tells nothing about any key.
        """
        return self._names.get(self._hidden(digest(key)))

    async def _look_at_file(self) -> None:
        if self._path is not None:
            if self._reading is None:
                self._reading = asyncio.create_task(asyncio.to_thread(read_keys, self._path), name="read keys")
            done, _ = await asyncio.wait({self._reading}, timeout=READ_S)
            if not done:  # it goes on, and is waited for at the next look
                raise ConfigError(f"FACESWAP_API_KEYS_FILE={str(self._path)!r} cannot be read within {READ_S:.0f} s")
            reading, self._reading = self._reading, None
            names = reading.result()
            if names != self._of_file:
                self._of_file = names
                self._gather()

    async def _look_at_database(self) -> None:
        keys = await self._store.api_keys()
        names = {key.sha256: key.name for key in keys if key.revoked_at is None}
        if names != self._of_database:
            self._of_database = names
            self._gather()
        if keys and not self.is_required:
            self.is_required = True
            log.info("there are API keys: nobody is let in without one from now on")

    def _gather(self) -> None:
        names = {**self._of_database, **self._of_file}
        self._names = {self._hidden(sha256): name for sha256, name in names.items()}

    def _hidden(self, sha256: str) -> bytes:
        return hmac.digest(self._secret, sha256.encode(), "sha256")

    def _tell(self, problem: str) -> None:
        if problem and problem != self._told:
            log.error("%s; the keys known so far still count", problem)
        self._told = problem
