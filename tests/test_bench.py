"""The frame of the benchmarks: how figures are judged, told and drawn, and that every row is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp.test_utils import TestServer

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a function that imports a file of the benchmarks; their names are free again afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        __import__(name)
        return sys.modules[name]

    yield load
    for name in set(sys.modules) - known:
        if (BENCH / f"{name}.py").exists():
            del sys.modules[name]


def test_the_median_is_held_against_the_goal_or_the_worst_round(bench: Any) -> None:
    rows = bench("rows")
    ours, limit = [2.0, 3.0, 10.0], [2.0, 2.0, 2.0]
    typical = rows.Figure("f", "s", ours, limit, rows.ratio, rows.at_most(1.5))
    assert typical.values == [1, 1.5, 5] and typical.judged == 1.5 and typical.met
    assert not rows.Figure("f", "s", ours, limit, rows.ratio, rows.at_most(1.5), by_worst=True).met
    assert not rows.Figure("f", "/s", ours, limit, rows.ratio, rows.at_least(1.6)).met
    assert rows.Figure("f", "s", ours, limit, rows.difference).met, "a figure without a goal misses none"
    shares = [rows.at_most(0).share_of(0), rows.at_most(0).share_of(1), rows.at_most(4).share_of(1)]
    assert shares == [0, rows.WORST, 0.25]


def test_the_exponent_of_a_cost_tells_how_it_grows(bench: Any) -> None:
    rows = bench("rows")
    sizes = (10, 100, 1_000)
    linear = rows.growth("f", "s", [{size: 0.2 * size for size in sizes}], of_each=False)
    assert linear.judged == pytest.approx(1) and linear.met
    assert not rows.growth("f", "s", [{size: size**1.2 for size in sizes}], of_each=False).met
    each = rows.growth("f", "s", [dict.fromkeys(sizes, 0.2), dict.fromkeys(sizes, 0.2)], of_each=True)
    assert each.judged == pytest.approx(1), "what costs the same at any size grows as its number does"


async def test_subjects_are_measured_in_turn_and_the_first_round_does_not_count(bench: Any) -> None:
    order = []

    async def measure(name: str) -> tuple[float, float]:
        order.append(name)
        return len(order), 0.5

    taken = await bench("rows").in_turn(2, lambda: measure("a"), lambda: measure("b"))
    assert order == ["a", "b"] * 3
    assert taken == [[(3, 5), (0.5, 0.5)], [(4, 6), (0.5, 0.5)]]


async def test_a_row_is_measured_printed_kept_and_drawn(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, report, run, asking, bare = map(bench, ("rows", "report", "run", "asking", "bare"))
    for name in ("RESULTS", "GOALS_PLOT", "GROWTH_PLOT"):
        monkeypatch.setattr(report, name, tmp_path / name)
    monkeypatch.setattr(report, "save", lambda row, save=report.save: save(row, tmp_path / "RESULTS"))

    async def measure(folder: Path, effort: Any) -> list[Any]:
        async with TestServer(bare.create_app(folder, {"a": 1})) as server:
            url = server.make_url("/")
            requests = [[asking.get(url, "/json")] * effort.of(4)] * 2
            ((speed,),) = await rows.in_turn(effort.rounds, lambda: speed_of(url, requests))
        growth = rows.growth("a thing <n>", "s", [{10: 1.0, 100: 10.0}], of_each=False)
        return [
            rows.Figure("fast enough", "requests/s", speed, goal=rows.at_least(0.001)),
            rows.Figure("too slow", "requests/s", speed, speed, rows.ratio, rows.at_least(2.0)),
            growth,
        ]

    async def speed_of(url: Any, requests: Any) -> tuple[float]:
        return ((await asking.ask(url, requests)).a_second,)

    row = rows.Row("P99", "a tiny row", measure)
    assert not await run.run(row, rows.Effort(2)), "a row misses its goal when one of its figures does"
    printed = capsys.readouterr().out
    assert "≥ 0.001 | met |" in printed and "≥ 2 | MISSED |" in printed
    await run.run(rows.Row("P9", "another", measure), rows.Effort(1))
    await run.run(rows.Row("P99", "a look", measure), rows.Effort(1, 0.5))
    kept = json.loads((tmp_path / "RESULTS").read_text())["rows"]
    assert [(one["id"], one["title"]) for one in kept] == [("P9", "another"), ("P99", "a tiny row")]
    assert kept[0]["machine"]["cores"] and kept[0]["figures"][2]["points"] == [[10, 1], [100, 10]]
    goals, growth = (ElementTree.fromstring((tmp_path / name).read_text()) for name in ("GOALS_PLOT", "GROWTH_PLOT"))
    shapes = [shape.get("class") for shape in goals.iter("{http://www.w3.org/2000/svg}rect")]
    assert shapes == ["met", "missed", "met"] * 2
    assert len(list(growth.iter("{http://www.w3.org/2000/svg}circle"))) == 4


def test_every_row_is_found_by_its_id(bench: Any) -> None:
    run = bench("run")
    for row_id in (*run.MODULES, *run.BY_NAME):
        assert run.find(row_id).id == row_id


async def test_a_row_on_postgresql_is_beside_the_one_on_sqlite_which_alone_has_goals(
    bench: Any, tmp_path: Path
) -> None:
    rows = bench("rows")

    async def measure(place: Any, folder: Path, effort: Any) -> list[Any]:
        return [rows.Figure("nodes", "", [place.nodes], goal=rows.at_most(-1))]

    made = rows.rows_in("P99", "a row", measure)
    assert [row.id for row in made] == ["P99", "P99-postgres", "P99-nodes"]
    figures = [(await row.measure(tmp_path, rows.Effort()))[0] for row in made]
    assert [figure.judged for figure in figures] == [0, 1, 2]
    assert [figure.met for figure in figures] == [False, True, True]


def test_a_run_that_misses_a_goal_says_so_and_exits_1(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rows = bench("run"), bench("rows")

    async def broken(folder: Path, effort: Any) -> list[Any]:
        raise OSError("no such server")

    monkeypatch.setattr(run, "find", lambda row_id: rows.Row(row_id, "a row that breaks", broken))
    monkeypatch.setattr(sys, "argv", ["run.py", "P1"])
    with pytest.raises(SystemExit, match="missed: P1"):
        run.main()
