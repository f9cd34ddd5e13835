"""The short version of `make chaos`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from system.chaos import Chaos

JOBS = 18


@pytest.mark.timeout(900)
async def test_no_job_is_lost_run_twice_or_half_done_whatever_happens(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chaos = Chaos(tmp_path, JOBS, seed)
    await chaos.run()
    assert not chaos.book.violations, f"seed {seed}: {chaos.book.violations}"
    assert len(chaos.book.promised) == JOBS
    assert chaos.book.faults and chaos.mischief, "no fault happened: this run proves nothing"
