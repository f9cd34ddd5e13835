"""The service under siege, in short; `make siege` is the long form, which also takes the time."""

from __future__ import annotations

from pathlib import Path

from system.siege import DESCRIPTORS, Crowd, stand_a_crowd, stand_uploads_without_descriptors

CROWD = Crowd(slow=40, idle=100, unread=4)


async def test_a_crowd_neither_keeps_others_waiting_nor_leaves_anything(tmp_path: Path) -> None:
    assert (await stand_a_crowd(tmp_path / "siege", CROWD, seconds=1))["meanwhile"]


async def test_uploads_that_take_all_connections_do_not_harm_the_job_that_runs(tmp_path: Path) -> None:
    assert await stand_uploads_without_descriptors(tmp_path / "siege") < DESCRIPTORS
