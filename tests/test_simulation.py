"""The service under simulated time: seeds without a violation, and bugs that the simulation must find."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutate import ROOT, Mutation
from simulation.run import bugs

SEEDS = 100
TESTS = Path(__file__).parent


def simulate(*arguments: str) -> str:
    """Run the simulation in processes of its own; return what it prints."""
    command = [sys.executable, "-m", "simulation.run", *arguments]
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("arguments", [(), ("--nodes", "3", "--first", "5000")], ids=["as they come", "three nodes"])
def test_nothing_that_was_promised_is_broken_whatever_goes_wrong(arguments: tuple[str, ...]) -> None:
    assert f"{SEEDS} seeds, 0 violations" in simulate("--seeds", str(SEEDS), *arguments)


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    digests = {
        re.findall(r"digest (\w+)", simulate("--first", "1000", "--seeds", "10", "--jobs", jobs))[0] for jobs in "12"
    }
    assert len(digests) == 1


@pytest.mark.parametrize("bug", bugs(), ids=lambda bug: bug.breaks)
def test_every_bug_of_the_simulation_still_applies(bug: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / bug.file
    copy.parent.mkdir(parents=True)
    copy.write_bytes((ROOT / bug.file).read_bytes())
    bug.apply(tmp_path)
    compile(copy.read_text(encoding="utf-8"), bug.file, "exec")
