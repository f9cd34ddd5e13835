"""Changes of jobs, turns and waiting work that a commit has made: told by triggers of the connection that makes them.

No move has to tell of it, so none can forget to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple


class JobChange(NamedTuple):
    """A job as a commit has left it; its state is None when it was deleted."""

    prompt_id: str
    state: str | None
    owner: str
    priority: int
    created_at: int
    frames_left: int


class TurnChange(NamedTuple):
    """The number of an owner's last turn."""

    owner: str
    number: int


class WaitingChange(NamedTuple):
    """A change of the numbers of what waits: of segments, of those that may have to pause, of deliveries."""

    segments: int
    pausing: int
    deliveries: int


Change = JobChange | TurnChange | WaitingChange

_JOB = "{row}.prompt_id, {state}, coalesce({row}.owner, ''), {row}.priority, {row}.created_at, {frames}"
_FRAMES_LEFT = "{row}.total_frames - {row}.current_frame"
_LEFT = _JOB.format(row="new", state="new.state", frames=_FRAMES_LEFT.format(row="new"))
_GONE = _JOB.format(row="old", state="NULL", frames="0")
_WAITS = "new.state = 'waiting', new.state = 'waiting' AND new.not_before > 0"
_WAITED = "-(old.state = 'waiting'), -(old.state = 'waiting' AND old.not_before > 0)"
_TRIGGERS = (
    f"job_added AFTER INSERT ON main.job BEGIN SELECT note_job({_LEFT})",
    f"job_changed AFTER UPDATE ON main.job BEGIN SELECT note_job({_LEFT})",
    f"job_deleted AFTER DELETE ON main.job BEGIN SELECT note_job({_GONE})",
    "turn_added AFTER INSERT ON main.turn BEGIN SELECT note_turn(new.owner, new.number)",
    "turn_taken AFTER UPDATE ON main.turn BEGIN SELECT note_turn(new.owner, new.number)",
    f"segment_added AFTER INSERT ON main.segment BEGIN SELECT note_waiting({_WAITS}, 0)",
    "segment_changed AFTER UPDATE OF state, not_before ON main.segment"
    f" BEGIN SELECT note_waiting({_WAITS}, 0), note_waiting({_WAITED}, 0)",
    f"segment_deleted AFTER DELETE ON main.segment BEGIN SELECT note_waiting({_WAITED}, 0)",
    "delivery_added AFTER INSERT ON main.delivery BEGIN SELECT note_waiting(0, 0, new.state = 'waiting')",
    "delivery_changed AFTER UPDATE OF state ON main.delivery"
    " BEGIN SELECT note_waiting(0, 0, (new.state = 'waiting') - (old.state = 'waiting'))",
    "delivery_deleted AFTER DELETE ON main.delivery BEGIN SELECT note_waiting(0, 0, -(old.state = 'waiting'))",
)
_UNENDED = _JOB.format(row="job", state="job.state", frames=_FRAMES_LEFT.format(row="job"))
SELECT_UNENDED = f"SELECT {_UNENDED} FROM job WHERE state IN ('QUEUED', 'PROCESSING')"
SELECT_TURNS = "SELECT owner, number FROM turn"
SELECT_WAITING = (
    "SELECT count(*), count(*) FILTER (WHERE not_before > 0),"
    " (SELECT count(*) FROM delivery WHERE state = 'waiting') FROM segment WHERE state = 'waiting'"
)
"""Queries for all that is there now, one for each kind of change."""


def note_changes(connection: sqlite3.Connection, note: Callable[[Change], None]) -> None:
    """Have a connection call a function for every row of a job, a turn, or of what waits, that it changes."""
    connection.create_function("note_job", 6, lambda *values: note(JobChange(*values)))
    connection.create_function("note_turn", 2, lambda *values: note(TurnChange(*values)))
    connection.create_function("note_waiting", 3, lambda *values: note(WaitingChange(*values)))
    connection.execute("PRAGMA temp_store = MEMORY")
    for trigger in _TRIGGERS:
        connection.execute(f"CREATE TEMP TRIGGER {trigger}; END")
