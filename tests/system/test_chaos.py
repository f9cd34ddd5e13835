"""The short version of `make chaos`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from system.chaos import run

JOBS = 60


@pytest.mark.timeout(420)
async def test_no_job_is_lost_run_twice_or_half_done_whatever_happens(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    book, proxy, violations = await run(tmp_path, JOBS, seed)
    assert not violations, f"seed {seed}: {violations}"
    assert len(book.frames) == JOBS
    assert book.faults and proxy.counts, "no fault happened: this run proves nothing"
