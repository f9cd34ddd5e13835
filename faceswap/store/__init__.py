"""The only SQL: jobs, segments and events in SQLite. One transaction a method, one method a move.

What a method changed is committed before its events are published, so that nobody is told what a crash could undo.
"""

from .database import SEQ_GAP, NewerDatabase, may_pass, migrate, now_ms, retry_writes
from .moves import IDEMPOTENCY_MS
from .reading import Reading
from .segments import SegmentMoves
from .upkeep import Upkeep

__all__ = ["IDEMPOTENCY_MS", "SEQ_GAP", "NewerDatabase", "Store", "may_pass", "migrate", "now_ms", "retry_writes"]


class Store(SegmentMoves, Reading, Upkeep):
    """The job records."""
