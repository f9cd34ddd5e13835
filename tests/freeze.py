"""Run a command while its processes stand still now and then, as on a machine whose host is busy: `make freeze`.

A test that fails under it, and not without, relies on luck: on something that is done within a time.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

SPARED = frozenset({"make", "sh", "bash", "unshare", "nsenter", "systemd", "systemctl", "systemd-analyze"})
"""Shells, and the programs that stop with their children and would not be woken."""
PAUSE_S = (0.2, 1.5)
FROZEN_S = (0.5, 1.5, 3.0, 6.0)
ALL_FROZEN_S = (0.5, 1.5, 3.0)
ALL_SHARE = 0.1
"""The share of freezes that are of everything, as of a virtual machine."""


def awake(command: psutil.Process) -> Iterator[psutil.Process]:
    """Yield the processes below one that may be frozen; who is stopped already, a test has stopped."""
    for process in command.children(recursive=True):
        with suppress(psutil.Error):
            if process.name() not in SPARED and process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                yield process


def freeze(command: psutil.Process, generator: random.Random) -> int:
    """Freeze some processes, or all, for a while; returns how many."""
    found = list(awake(command))
    is_all = generator.random() < ALL_SHARE
    chosen = found if is_all else generator.sample(found, min(len(found), generator.choice((1, 1, 2, 3))))
    for process in chosen:
        with suppress(psutil.Error):
            process.suspend()
    time.sleep(generator.choice(ALL_FROZEN_S if is_all else FROZEN_S))  # they stand still for so long
    for process in reversed(chosen):
        with suppress(psutil.Error):
            process.resume()
    return len(chosen)


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="freeze", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    sys.stdout.flush()
    generator, frozen = random.Random(arguments.seed), 0
    with subprocess.Popen(arguments.command) as command:
        process = psutil.Process(command.pid)
        while command.poll() is None:
            time.sleep(generator.uniform(*PAUSE_S))  # and go on for so long
            with suppress(psutil.NoSuchProcess):
                frozen += freeze(process, generator)
    sys.stdout.write(f"froze {frozen} processes\n")
    return command.returncode


if __name__ == "__main__":
    sys.exit(main())
