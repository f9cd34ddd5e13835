"""Breaks one line at a time and sees whether a test notices: `python tests/mutate.py`, or `make mutate`.

`mutations.toml` lists what is broken. Each change is made in a copy of the tree, never in the tree itself.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("mutations.toml")
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "demo", "shared")
TEST_TIMEOUT_S = 40
"""A test that hangs has noticed too: none that passes takes so long."""
WAIT_S = 20
"""For what a test waits for: many notice by waiting in vain."""
TIMEOUT_S = 3600.0
PYTEST = "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"
"""Ends at once, whatever threads a failed test has left behind."""
TIMED_OUT = "+ Timeout +"
"""In what pytest-timeout writes when it ends the process."""
HANGS = "nothing ended any more"
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """A line that is broken on purpose.

    breaks  the promise that no longer holds
    file    where, relative to the root
    was     text that occurs there exactly once
    now     what takes its place
    tests   what pytest is asked to run, relative to `tests`
    """

    breaks: str
    file: str
    was: str
    now: str
    tests: tuple[str, ...]

    def broken(self, text: str) -> str:
        """Return the file's text with the line broken. Raises ValueError where it does not occur exactly once."""
        if text.count(self.was) != 1 or self.was == self.now:
            raise ValueError(f"{self.file}: occurs {text.count(self.was)} times: {self.was!r}")
        return text.replace(self.was, self.now)

    def apply(self, root: Path) -> None:
        """Change the file under `root`."""
        path = root / self.file
        path.write_text(self.broken(path.read_text(encoding="utf-8")), encoding="utf-8")


@cache
def mutations() -> list[Mutation]:
    """Read all mutations of the list."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def run_tests(root: Path, tests: Sequence[str]) -> str | None:
    """Run tests in the tree at `root`; returns the first that fails, None when all pass."""
    # By a thread: what a signal raises in a task of the background ends nothing but that.
    options = ["-x", "-p", "no:cacheprovider", "--timeout", str(TEST_TIMEOUT_S), "--timeout-method", "thread"]
    command = [sys.executable, "-c", PYTEST, *options, *(f"tests/{test}" for test in tests)]
    environ = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "WAIT_S": str(WAIT_S)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:  # a pipe would wait for all who inherit it
        process = subprocess.Popen(command, cwd=root, env=environ, stdout=told, stderr=told, process_group=0)
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return HANGS
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told.seek(0)
        output = told.read()
    if process.returncode == 0:
        return None
    if process.returncode not in (1, 2):  # a failed test, a module that cannot be imported
        raise RuntimeError(f"pytest ended with {process.returncode}: {output}")
    if TIMED_OUT in output:
        return HANGS
    found = FAILED.search(output)
    return found[1].removeprefix("tests/") if found else output.strip().splitlines()[-1]


class Trees:
    """Copies of the tree, each used by one mutation at a time."""

    def __init__(self, folder: Path, count: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        for number in range(count):
            copy = folder / str(number)
            shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
            self._free.put(copy)

    def noticed_by(self, mutation: Mutation) -> str | None:
        """Return the test that fails by a mutation; None when it survives."""
        root = self._free.get()
        original = (root / mutation.file).read_bytes()
        try:
            mutation.apply(root)
            return run_tests(root, mutation.tests)
        finally:
            (root / mutation.file).write_bytes(original)
            self._free.put(root)


def main() -> int:
    """Print which test notices each mutation; 1 when one survives or no longer applies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only those whose promise or file holds one of these words")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="how many at a time")
    arguments = parser.parse_args()
    chosen = [m for m in mutations() if not arguments.words or any(w in m.breaks + m.file for w in arguments.words)]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="faceswap-mutate-") as folder:
        trees = Trees(Path(folder), arguments.jobs)
        if failing := run_tests(Path(folder, "0"), sorted({test for m in chosen for test in m.tests})):
            sys.stdout.write(f"{failing} fails although nothing is broken\n")
            return 1
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for mutation, test in zip(chosen, pool.map(trees.noticed_by, chosen), strict=True):
                survivors += test is None
                sys.stdout.write(f"{mutation.breaks:<90} {test or 'NOBODY NOTICES'}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{len(chosen)} broken, {survivors} not noticed\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
