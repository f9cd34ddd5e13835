"""The results of the benchmarks: as a table, as JSON with the machine they were taken on, and as plots in SVG."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from rows import Figure, Row

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
GOALS_PLOT, GROWTH_PLOT = HERE / "goals.svg", HERE / "growth.svg"

STYLE = (
    "<style>text{font:12px sans-serif;fill:#24292f}.axis{stroke:#8c959f}.met{fill:#2da44e;stroke:#2da44e}"
    ".missed{fill:#cf222e;stroke:#cf222e}.line{fill:none;stroke-width:2}.end{text-anchor:end}.mid{text-anchor:middle}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}</style>"
)
LINE_PX, NAME_PX, PLOT_PX, VALUE_PX = 20, 430, 360, 130
DECADES = (-1.0, 1.0)
"""The powers of ten between which the shares of the goals are drawn."""
PANEL_PX = 220


def machine() -> dict[str, Any]:
    """Return what a figure depends on beside the code, and the commit of the code."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(
        ("git", "describe", "--always", "--dirty"), cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": found[1] if found else platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def document(row: Row, figures: Sequence[Figure], taken_on: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the results of a row for JSON."""
    return {
        "id": row.id,
        "title": row.title,
        "seconds": round(seconds, 1),
        "machine": dict(taken_on),
        "met": all(figure.met for figure in figures),
        "figures": [figure.document() for figure in figures],
    }


def number(value: float) -> str:
    """Write a number with three digits that count."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def print_figures(row: Mapping[str, Any]) -> None:
    """Print the figures of a row as a Markdown table: medians, and the smallest and the largest value."""
    lines = [f"\n**{row['id']}: {row['title']}** ({row['seconds']:.0f} s)\n"]
    lines += [
        "| figure | subject | limit | compared | spread | goal | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for figure in row["figures"]:
        subject, limit, values = figure["subject"], figure["limit"], figure["values"]
        words = [f"{figure['name']}, {figure['unit']}", number(statistics.median(subject))]
        words += [number(statistics.median(limit)) if limit else "–", number(figure["judged"])]
        words += [f"{number(min(values))}–{number(max(values))}", figure["goal"] or "–"]
        words += ["" if figure["goal"] is None else "met" if figure["met"] else "MISSED"]
        lines.append(f"| {' | '.join(words)} |")
        if figure["points"]:
            points = ", ".join(f"{size:,}: {number(cost)}" for size, cost in figure["points"])
            lines.append(f"| {points} | | | | | | |")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def save(row: Mapping[str, Any], path: Path = RESULTS) -> list[dict[str, Any]]:
    """Put a row's results in the place of its earlier ones; returns the results of all rows."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([old for old in rows if old["id"] != row["id"]] + [dict(row)], key=_order)
    path.write_text(json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n")
    return rows


def _order(row: Mapping[str, Any]) -> tuple[str, int, str]:
    letters, digits, rest = re.fullmatch(r"(\D+)(\d*)(.*)", row["id"]).groups()  # type: ignore[union-attr]  # all match
    return letters, int(digits or 0), rest


def draw_goals(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw how much of its goal each figure uses, on a logarithmic axis: up to the line at 1 it is met."""
    figures = [(row["id"], figure) for row in rows for figure in row["figures"] if figure["goal"] is not None]
    height = LINE_PX * (len(figures) + 2)

    def place(share: float) -> float:
        power = math.log10(share) if share > 0 else DECADES[0]
        power = min(max(power, DECADES[0]), DECADES[1])
        return NAME_PX + PLOT_PX * (power - DECADES[0]) / (DECADES[1] - DECADES[0])

    parts = []
    for share in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        x = place(share)
        dash = "" if share == 1 else ' stroke-dasharray="2 4"'
        parts.append(f'<line class="axis" x1="{x:.0f}" x2="{x:.0f}" y1="{LINE_PX}" y2="{height - LINE_PX}"{dash}/>')
        parts.append(f'<text class="mid" x="{x:.0f}" y="14">{"goal" if share == 1 else f"{share:g} ×"}</text>')
    for line, (row_id, figure) in enumerate(figures):
        y, kind = LINE_PX * (line + 1.5), "met" if figure["met"] else "missed"
        shares = figure["of_goal"]
        middle = place(max(shares) if figure["by_worst"] else statistics.median(shares))
        low, high = place(min(shares)), place(max(shares))
        name = escape(f"{row_id}  {figure['name']}, {figure['unit']}")
        value = escape(f"{number(figure['judged'])} ({figure['goal']})")
        parts += [
            f'<text class="end" x="{NAME_PX - 8}" y="{y + 4}">{name}</text>',
            f'<rect class="{kind}" x="{NAME_PX}" y="{y - 6}" width="{middle - NAME_PX:.1f}" height="12" opacity=".6"/>',
            f'<line class="{kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke-width="2"/>',
            f'<text x="{NAME_PX + PLOT_PX + 8}" y="{y + 4}">{value}</text>',
        ]
    return _svg(NAME_PX + PLOT_PX + VALUE_PX, height, parts)


def draw_growth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the cost at each size of each figure of growth, both axes logarithmic, with its exponent."""
    figures = [figure for row in rows for figure in row["figures"] if figure["points"]]
    parts = []
    for panel, figure in enumerate(figures):
        left, top = PANEL_PX * 1.5 * (panel % 3), (PANEL_PX + 40) * (panel // 3)
        logs = [(math.log10(size), math.log10(max(cost, 1e-9))) for size, cost in figure["points"]]
        (x0, x1), (y0, y1) = ((math.floor(min(axis)), math.ceil(max(axis))) for axis in zip(*logs, strict=True))
        places = [
            (
                left + 50 + (PANEL_PX - 20) * (x - x0) / max(1, x1 - x0),
                top + 30 + (PANEL_PX - 60) * (1 - (y - y0) / max(1, y1 - y0)),
            )
            for x, y in logs
        ]
        kind, bottom, right = "met" if figure["met"] else "missed", top + PANEL_PX - 30, left + PANEL_PX + 30
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts += [
            f'<text x="{left + 8}" y="{top + 16}">{escape(figure["name"])} {figure["judged"]:.2f}</text>',
            f'<polyline class="axis line" stroke-width="1" points="{left + 50},{top + 30} {left + 50},{bottom}'
            f' {right},{bottom}"/>',
            f'<polyline class="{kind} line" style="fill:none" points="{line}"/>',
            f'<text class="end" x="{left + 46}" y="{top + 36}">{10.0**y1:g}</text>',
            f'<text class="end" x="{left + 46}" y="{bottom}">{10.0**y0:g}</text>',
            f'<text x="{left + 50}" y="{bottom + 16}">{10**x0:,}</text>',
            f'<text class="end" x="{right}" y="{bottom + 16}">{10**x1:,}</text>',
            f'<text class="mid" x="{(left + 50 + right) / 2}" y="{bottom + 16}">{escape(figure["unit"])}</text>',
        ]
        parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    columns = min(3, max(1, len(figures)))
    return _svg(round(PANEL_PX * 1.5 * columns), (PANEL_PX + 40) * max(1, math.ceil(len(figures) / 3)), parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the plots of all rows."""
    GOALS_PLOT.write_text(draw_goals(rows))
    GROWTH_PLOT.write_text(draw_growth(rows))
