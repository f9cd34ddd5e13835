"""The results: a table of every figure against its goal, all rows, and both as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .figures import FIGURES


@dataclass(frozen=True)
class Row:
    """The figures of one portrait put into one clip, by one engine."""

    clip: str
    portrait: str
    engine: str
    values: dict[str, float | None]

    @property
    def name(self) -> str:
        """Clip and portrait."""
        return f"{self.clip} ← {self.portrait}"


def _of(rows: Sequence[Row], key: str) -> list[tuple[float, str]]:
    """Return the values of a figure that are known, each with the name of its row."""
    return [(value, row.name) for row in rows if (value := row.values[key]) is not None]


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table of figures: mean, worst row, share at goal, for each engine."""
    engines = list(dict.fromkeys(row.engine for row in rows))
    yield f"{'figure':60} {'goal':>10}  " + "  ".join(f"{engine:^22}" for engine in engines) + "  worst row"
    yield f"{'':60} {'':>10}  " + "  ".join("    mean   worst at goal" for _ in engines)
    for key, figure in FIGURES.items():
        cells, worst_row = [], ""
        for engine in engines:
            known = _of([row for row in rows if row.engine == engine], key)
            if not known:
                cells.append(f"{'–':^22}")
                continue
            worst, worst_row = max(known, key=lambda pair: figure.badness(pair[0]))
            met = sum(figure.met(value) for value, _ in known) / len(known)
            share = f"{met:7.0%}" if figure.goal else f"{'':7}"
            mean = statistics.fmean(value for value, _ in known)
            digits = max(figure.digits, 1)
            cells.append(f"{mean:8.{digits}f}{worst:8.{figure.digits}f}{share}")
        yield f"{figure.title:60} {figure.goal:>10}  " + "  ".join(cells) + f"  {worst_row}"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one line a row, with every figure; a value that misses its goal is marked by `!`."""
    width = max(len(row.name) for row in rows) + 2
    names = max(len(row.engine) for row in rows) + 2
    yield " " * (width + names) + "".join(f"{key[:9]:>11}" for key in FIGURES)
    for row in rows:
        cells = []
        for key, figure in FIGURES.items():
            value = row.values[key]
            text = "–" if value is None else f"{value:.{figure.digits}f}"
            cells.append(f"{text:>10}" + (" " if value is None or figure.met(value) else "!"))
        yield f"{row.name:{width}}{row.engine:{names}}" + "".join(cells)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows and the goals as JSON."""
    goals = {key: {"title": figure.title, "goal": figure.goal} for key, figure in FIGURES.items()}
    path.write_text(json.dumps({"figures": goals, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
