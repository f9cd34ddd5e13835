"""Runs seeds: `make simulate SEEDS=10000`; `make simulate SEED=123` tells all that happens in one.

`NODES=3` gives every world three nodes; without it each seed has as many as it has.

`make simulate BUGS=1` puts each bug of `bugs.toml` into a copy of the tree and runs seeds there until one finds it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mutate import NOT_COPIED, ROOT, Mutation

BUGS = Path(__file__).with_name("bugs.toml")
TOLD_EVERY = 500
"""Seeds between two lines that tell how far a run has come."""

SEEDS_A_PROCESS = 200
"""A process that has run so many gives way to a new one: worlds that are over are never let go of."""
MOST_SEEDS_FOR_A_BUG = 3000


@dataclass(frozen=True)
class Result:
    """The end of one seed. `violation` is the promise that did not hold, None where all did."""

    seed: int
    violation: str | None
    digest: str
    counts: Counter[str]


def bugs() -> list[Mutation]:
    """Return the bugs that the simulation is known to find."""
    return [Mutation(**entry, tests=()) for entry in tomllib.loads(BUGS.read_text(encoding="utf-8"))["bug"]]


def run_seed(seed: int, disks: Path, nodes: int | None) -> Result:
    """Run one seed."""
    from .world import simulate

    gc.disable()
    try:
        world = simulate(seed, disks, nodes)
    except Exception:  # noqa: BLE001  # the simulation itself is broken, which the seed shows
        return Result(seed, traceback.format_exc(), "", Counter())
    return Result(seed, world.violation, world.digest, world.counts)


def run_seeds(seeds: Sequence[int], jobs: int, most_failures: int, nodes: int | None) -> int:
    """Print every seed that fails, and what all of them came to; returns the number of those that failed."""
    from . import world  # once, for all processes

    world.prepare()
    started, counts, failures, done, digest = time.monotonic(), Counter[str](), 0, 0, hashlib.blake2b(digest_size=8)
    gc.freeze()
    with (
        tempfile.TemporaryDirectory(prefix="faceswap-simulation-", dir=world.MEMORY) as disks,
        multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=SEEDS_A_PROCESS) as pool,
    ):
        for result in pool.imap(partial(run_seed, disks=Path(disks), nodes=nodes), seeds):
            done += 1
            counts.update(result.counts)
            digest.update(result.digest.encode())
            if result.violation is not None:
                failures += 1
                again = f"make simulate SEED={result.seed}" + (f" NODES={nodes}" if nodes else "")
                print(f"seed {result.seed}: {result.violation}\n  again: {again}", flush=True)
                if failures == most_failures:
                    break
            if done % TOLD_EVERY == 0:
                print(f"{done} seeds", flush=True)
    seconds = time.monotonic() - started
    print(f"{done} seeds, {failures} violations, {done / seconds:.1f} seeds a second with {jobs} processes")
    print("each with", ", ".join(f"{name} {count / done:.2f}" for name, count in sorted(counts.items())))
    print("digest", digest.hexdigest())
    return failures


def replay(seed: int, nodes: int | None) -> int:
    """Print all that happens in a seed."""
    from . import world

    world.prepare()
    gc.disable()
    found = world.simulate(seed, nodes=nodes)
    print("\n".join(found.trace), f"\n{dict(found.counts)}\ndigest {found.digest}")
    return int(found.violation is not None)


def find(bug: Mutation, jobs: int, nodes: int | None) -> str | None:
    """Return what the first seed that finds a bug tells, None when none does."""
    with tempfile.TemporaryDirectory(prefix="faceswap-bug-") as folder:
        root = Path(folder, "tree")
        shutil.copytree(ROOT, root, ignore=NOT_COPIED)
        bug.apply(root)
        command = [sys.executable, "-m", "simulation.run", "--seeds", str(MOST_SEEDS_FOR_A_BUG), "--jobs", str(jobs)]
        if nodes is not None:
            command += ["--nodes", str(nodes)]
        environ = {**os.environ, "PYTHONPATH": str(root)}
        ended = subprocess.run(command, cwd=root / "tests", env=environ, capture_output=True, text=True, check=False)
        if ended.returncode not in (0, 1):
            raise RuntimeError(ended.stderr)
        return next((line for line in ended.stdout.splitlines() if line.startswith("seed ")), None)


def main() -> int:
    """Print what was found; 1 when a seed fails, or a bug is not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one, with all that happens in it")
    parser.add_argument("--nodes", type=int, help="how many nodes every world has")
    parser.add_argument(
        "--bugs", nargs="*", metavar="WORD", help="find the bugs whose promise holds one of these words"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--failures", type=int, default=1, help="how many to stop after")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of a set would differ from process to process
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "simulation.run", *sys.argv[1:]], environ)
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.nodes)
    if arguments.bugs is not None:
        missed = 0
        for bug in bugs():
            if not arguments.bugs or any(word in bug.breaks for word in arguments.bugs):
                found = find(bug, arguments.jobs, arguments.nodes)
                missed += found is None
                print(f"{bug.breaks}: {found or 'NOT FOUND'}", flush=True)
        return int(missed > 0)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    return int(run_seeds(seeds, arguments.jobs, arguments.failures, arguments.nodes) > 0)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # nothing of a process that was killed in a simulation is to run now
