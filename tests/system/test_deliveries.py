"""Deliveries survive the death of the service. `make deliveries` kills it a hundred times on each database."""

from __future__ import annotations

import random
from pathlib import Path

from system.deliveries import Killing
from talk import on_both_databases

pytestmark = on_both_databases
ROUNDS = 2


async def test_what_a_service_was_killed_before_sending_arrives_after_its_restart(
    tmp_path: Path, own_database: dict[str, object]
) -> None:
    await Killing(tmp_path, own_database).run(ROUNDS, random.Random(9))
