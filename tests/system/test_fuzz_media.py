"""Damaged and hostile media through upload and job, in short; `make fuzz-media` is the long form."""

from __future__ import annotations

from pathlib import Path

from system.fuzz_media import fuzz

SEED, CASES = 1, 8
KINDS = ("h264.mp4", "vp8.webm")


async def test_hostile_media_ends_in_a_refusal_a_failed_job_or_a_valid_result_and_opens_nothing(tmp_path: Path) -> None:
    run, _ = await fuzz(tmp_path / "fuzz", SEED, range(CASES), KINDS, as_pictures=False)
    assert run.faults == []
    assert run.ends.total() > CASES
