"""The only SQL: jobs, segments and events in SQLite. One transaction a method, one method a move.

What a method changed is committed before its events are published, so that nobody is told what a crash could undo.
"""

from .database import SEQ_GAP, NewerDatabase, is_transient, migrate, now_ms, retry_writes
from .jobs import IDEMPOTENCY_MS
from .queries import Queries
from .segments import Segments
from .upkeep import Upkeep

__all__ = ["IDEMPOTENCY_MS", "SEQ_GAP", "NewerDatabase", "Store", "is_transient", "migrate", "now_ms", "retry_writes"]


class Store(Segments, Queries, Upkeep):
    """The job records."""
