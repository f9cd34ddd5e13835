"""Run every row of the benchmarks, or those named: `python bench/run.py P1 G2`. Exits 1 where a goal is missed.

`SHARE=0.1` does a tenth of the work, for a look: nothing is written. `ROUNDS` sets the repetitions.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import report
from rows import PLACES, ROUNDS, Effort, Row

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

MODULES = {
    "P1": "status",
    "P2": "watchers",
    "P3": "lag",
    "P4": "upload",
    "P5": "others",
    "P6": "downloads",
    "P7": "jobs",
    "P8": "start",
    "P9": "engine",
    "P9-veryfast": "engine",
    "P10": "backends",
    "P11": "idle",
    "P12": "engine",
    "G1": "growth",
    "G2": "growth",
    "G3": "growth",
    "G4": "growth",
    "Q1": "many",
    "Q2": "many",
    "Q3": "many",
}
"""The file of each row."""
PLACED = ("P1", "P2", "P3", "P7", "P8", "Q2")
"""Rows that can run on PostgreSQL too."""
BY_NAME = {
    "L1": "length",
    "N1": "cluster",
    "S1": "s3",
    **{row_id + place.suffix: MODULES[row_id] for row_id in PLACED for place in PLACES[1:]},
}
"""Rows that run only when they are named: they take longer, or need a server."""
LIMIT_S = 900.0
"""The longest that a row may take."""


def find(row_id: str) -> Row:
    """Return the row of an id."""
    name = {**MODULES, **BY_NAME}.get(row_id)
    if name is None:
        sys.exit(f"no such row: {row_id}; there are {', '.join([*MODULES, *BY_NAME])}")
    rows: tuple[Row, ...] = importlib.import_module(name).ROWS
    return next(row for row in rows if row.id == row_id)


async def run(row: Row, effort: Effort) -> bool:
    """Measure a row, print its figures and, for the whole work, keep them; returns whether every goal is met."""
    taken_on, started = report.machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faceswap-bench-") as folder:
        async with asyncio.timeout(LIMIT_S):
            figures = await row.measure(Path(folder), effort)
    result = report.document(row, figures, taken_on, time.monotonic() - started)
    report.print_figures(result)
    if effort.share >= 1:
        report.draw(report.save(result))
    return bool(result["met"])


def main() -> None:
    effort = Effort(int(os.environ.get("ROUNDS", ROUNDS)), float(os.environ.get("SHARE", "1")))
    missed = []
    for row_id in sys.argv[1:] or MODULES:
        row = find(row_id)
        try:
            is_met = asyncio.run(run(row, effort))
        except Exception:  # noqa: BLE001  # the other rows are measured nevertheless, and this one counts as missed
            traceback.print_exc()
            is_met = False
        if not is_met:
            missed.append(row_id)
    sys.exit(f"\nmissed: {', '.join(missed)}" if missed else None)


if __name__ == "__main__":
    main()
