"""The frame of the benchmarks: a row measures figures, and each figure is held against its goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROUNDS = 5
GROWTH_SIZES = (10, 100, 1_000, 10_000)
WORST = 100.0
"""The most of what is allowed that a figure counts as using."""
GROWTH_GOAL = 1.1
"""The largest exponent that counts as linear."""

Compare = Callable[[float, float], float]


@dataclass(frozen=True)
class Effort:
    """The repetitions of a measurement, and the share of the usual work that each does."""

    rounds: int = ROUNDS
    share: float = 1.0

    def of(self, number: float, least: int = 1) -> int:
        """Return this share of a number of requests, jobs, frames or bytes."""
        return max(least, round(number * self.share))

    def sizes(self, sizes: Sequence[int]) -> list[int]:
        """Return this share of the sizes of a row of growth, two at least."""
        return [size for size in sizes if size <= sizes[-1] * self.share] or list(sizes[:2])


@dataclass(frozen=True)
class Goal:
    """A bound that a figure keeps."""

    bound: float
    is_least: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a value keeps the bound."""
        return value >= self.bound if self.is_least else value <= self.bound

    def share_of(self, value: float) -> float:
        """Return how much of what is allowed a value uses: up to 1 is met."""
        used = (self.bound, value) if self.is_least else (value, self.bound)
        if used[0] == 0:
            return 0.0
        return min(used[0] / used[1], WORST) if used[1] > 0 else WORST

    def __str__(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}"


def at_least(bound: float) -> Goal:
    """Return the goal of a figure that must not be smaller."""
    return Goal(bound, is_least=True)


def at_most(bound: float) -> Goal:
    """Return the goal of a figure that must not be larger."""
    return Goal(bound)


def ratio(subject: float, limit: float) -> float:
    """Compare by division."""
    return subject / limit


def difference(subject: float, limit: float) -> float:
    """Compare by subtraction."""
    return subject - limit


@dataclass(frozen=True)
class Figure:
    """A measured thing: one value a round, and beside it the limit's value of the same round where there is a limit."""

    name: str
    unit: str
    subject: Sequence[float]
    limit: Sequence[float] = ()
    compare: Compare | None = None
    """Makes the value of a round of subject and limit; without it the subject's is the value."""
    goal: Goal | None = None
    by_worst: bool = False
    """True: the worst round counts, and not the median."""
    points: Sequence[tuple[int, float]] = ()
    """Of a figure of growth: the cost at each size."""

    @property
    def values(self) -> list[float]:
        """The value of each round."""
        if self.compare is None:
            return list(self.subject)
        return [self.compare(one, other) for one, other in zip(self.subject, self.limit, strict=True)]

    @property
    def judged(self) -> float:
        """The value that is held against the goal."""
        if not self.by_worst:
            return statistics.median(self.values)
        return min(self.values) if self.goal and self.goal.is_least else max(self.values)

    @property
    def met(self) -> bool:
        """True if the goal is kept, or there is none."""
        return self.goal is None or self.goal.holds(self.judged)

    def document(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "subject": list(self.subject),
            "limit": list(self.limit),
            "values": self.values,
            "judged": self.judged,
            "goal": None if self.goal is None else str(self.goal),
            "of_goal": None if self.goal is None else [self.goal.share_of(value) for value in self.values],
            "by_worst": self.by_worst,
            "met": self.met,
            "points": [list(point) for point in self.points],
        }


@dataclass(frozen=True)
class Row:
    """A benchmark: `measure` takes its figures in a folder that goes afterwards."""

    id: str
    title: str
    measure: Callable[[Path, Effort], Awaitable[Sequence[Figure]]]


@dataclass(frozen=True)
class Place:
    """The database that a service keeps jobs in, and the number of its nodes."""

    suffix: str
    title: str
    nodes: int
    """Nodes on PostgreSQL; 0 is a service on SQLite."""


PLACES = (
    Place("", "", 0),
    Place("-postgres", " (PostgreSQL)", 1),
    Place("-nodes", " (PostgreSQL, at the other of two nodes)", 2),
)


def rows_in(
    row_id: str, title: str, measure: Callable[[Place, Path, Effort], Awaitable[Sequence[Figure]]]
) -> tuple[Row, ...]:
    """Return a row for each place. The goals hold on SQLite."""

    async def without_goals(place: Place, folder: Path, effort: Effort) -> list[Figure]:
        return [replace(figure, goal=None) for figure in await measure(place, folder, effort)]

    return tuple(
        Row(row_id + place.suffix, title + place.title, partial(without_goals if place.nodes else measure, place))
        for place in PLACES
    )


Measurement = Callable[[], Awaitable[Sequence[float]]]


async def in_turn(rounds: int, *subjects: Measurement) -> list[list[tuple[float, ...]]]:
    """Measure the subjects in turn, A B A B, after a round that does not count.

    Returns for each subject its figures, and for each figure its value in each round.
    """
    taken = [[tuple(await subject()) for subject in subjects] for _ in range(rounds + 1)][1:]
    return [list(zip(*each, strict=True)) for each in zip(*taken, strict=True)]


def exponent(costs: Mapping[int, float]) -> float:
    """Return the slope of the line through the points, by least squares, both axes logarithmic."""
    sizes, values = zip(*((math.log(size), math.log(max(cost, 1e-9))) for size, cost in costs.items()), strict=True)
    return statistics.linear_regression(sizes, values).slope


def growth(name: str, unit: str, rounds: Sequence[Mapping[int, float]], *, of_each: bool) -> Figure:
    """Make the figure of a cost that was taken at each size in each round; its values are the exponents.

    `of_each`: the cost is that of one more, with so many there; of all together it is the integral, one power higher.
    """
    points = [(size, statistics.median(costs[size] for costs in rounds)) for size in rounds[0]]
    exponents = [exponent(costs) + (1 if of_each else 0) for costs in rounds]
    return Figure(f"{name}: exponent", unit, exponents, goal=at_most(GROWTH_GOAL), points=points)
