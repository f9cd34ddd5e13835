"""Turns of the owners: whose segment is claimed next, and the place of a job in the queue that comes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from ..errors import TooManyRequests
from ..jobs import Job
from .connection import Row

RETRY_AFTER_S = 60
"""The time after which a client may try a queue again in which its key has too many jobs."""
Fetch = Callable[..., Awaitable[Sequence[Row]]]
"""A function that executes a statement with its parameters and returns the rows."""

NEXT_OWNER = (
    "(WITH RECURSIVE waiting (owner) AS ("
    "SELECT (SELECT owner FROM segment WHERE state = 'waiting' ORDER BY owner LIMIT 1) UNION ALL"
    " SELECT (SELECT segment.owner FROM segment WHERE state = 'waiting' AND segment.owner > waiting.owner"
    " ORDER BY segment.owner LIMIT 1) FROM waiting WHERE waiting.owner IS NOT NULL)"
    " SELECT waiting.owner FROM waiting LEFT JOIN turn ON turn.owner = waiting.owner"
    " WHERE (SELECT 1 FROM segment WHERE segment.owner = waiting.owner AND {condition}"
    " ORDER BY segment.priority DESC, segment.created_at, segment.prompt_id, segment.number LIMIT 1) = 1"
    " ORDER BY coalesce(turn.number, 0), waiting.owner LIMIT 1)"
)
"""A query for the owner whose turn it is: of those with a segment for which a condition holds, the one who had theirs
the longest ago. It goes from owner to owner, not from segment to segment: no `EXISTS`, of which PostgreSQL makes a join
with all segments."""
ADD_OWNER = "INSERT INTO turn (owner, number) VALUES (?, 0) ON CONFLICT (owner) DO NOTHING"
"""A statement that lets an owner, who has the first turn then, have turns."""
TAKE_TURN = (
    "UPDATE turn SET number = (SELECT max(number) + 1 FROM turn) WHERE owner = (SELECT owner FROM turn WHERE owner = ?"
    " AND (number = 0 OR number <= (SELECT max(number) FROM turn WHERE owner <> ?)){lock})"
)
"""A statement, its parameter given twice, that puts an owner behind all others, unless it is there, or another
transaction puts it there now: no claim waits for another, and where there is one owner nothing is written.

Two transactions at a time may put two owners at the same place, from which the next turn of either moves it on.
"""

_OWN_PLACE = (
    "SELECT count(*) FROM job WHERE state = 'QUEUED' AND coalesce(owner, '') = ?"
    " AND (priority > ? OR (priority = ? AND (created_at, prompt_id) <= (?, ?)))"
)
_LINES = (
    "SELECT line.owner, line.jobs, coalesce(turn.number, 0) FROM"
    " (SELECT coalesce(owner, '') AS owner, count(*) AS jobs FROM job WHERE state = 'QUEUED'"
    " GROUP BY coalesce(owner, '')) AS line LEFT JOIN turn ON turn.owner = line.owner"
)


def check_queue_of_key(queued: int, limit: int) -> None:
    """Raise `TooManyRequests` when so many jobs of a key wait that it gets no more in."""
    if queued >= limit:
        detail = f"{queued:,} jobs of this key wait already, the most that it may have in the queue."
        raise TooManyRequests(detail, code="key_queue_full", retry_after=RETRY_AFTER_S)


async def queue_place(fetch: Fetch, job: Job) -> int | None:
    """Return the place of a queued job, 1 for the next to start, if each job took one turn of its owner.

    None when it has left the queue since it was read, and was the first of its owner.
    """
    priority = job.options.priority
    rows = await fetch(_OWN_PLACE, job.owner or "", priority, priority, job.created_at, job.prompt_id)
    own_place = rows[0][0]
    return (await _places(fetch, job.owner, [own_place]))[0] if own_place else None


async def queue_places(fetch: Fetch, owner: str | None, own_places: Mapping[str, int]) -> dict[str, int]:
    """Return the places of queued jobs, by id, from those among the jobs of their owner."""
    return dict(zip(own_places, await _places(fetch, owner, own_places.values()), strict=True))


async def _places(fetch: Fetch, owner: str | None, own_places: Iterable[int]) -> list[int]:
    lines = {row[0]: (row[1], row[2]) for row in await fetch(_LINES)}
    return places_in_turn(owner or "", own_places, lines)


def places_in_turn(owner: str, own_places: Iterable[int], lines: Mapping[str, tuple[int, int]]) -> list[int]:
    """Return the place among all for each place among the queued jobs of an owner.

    `lines` has the number of queued jobs, and that of the last turn, of each owner. Before the n-th job of an owner
    each other has n turns, or n - 1 where theirs comes later.
    """
    _, own_turn = lines.get(owner, (0, 0))
    others = [(jobs, (turn, other) > (own_turn, owner)) for other, (jobs, turn) in lines.items() if other != owner]
    return [place + sum(min(jobs, place - later) for jobs, later in others) for place in own_places]
