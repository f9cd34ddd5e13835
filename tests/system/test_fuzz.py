"""The short form of `make fuzz`: schemathesis, with every check, against a running service that asks for keys."""

from __future__ import annotations

from pathlib import Path

from system.fuzz import Fuzz

CASES = "3"
"""Cases of each operation; `make fuzz` sends thousands."""


async def test_the_service_answers_as_it_is_described_whatever_is_sent(tmp_path: Path) -> None:
    async with Fuzz(tmp_path) as fuzz:
        await fuzz.prepare()
        assert await fuzz.run("--phases", "fuzzing,stateful", "--max-examples", CASES, "--seed", "1") > 50
