"""The only SQL: jobs, segments and events in a database. One transaction a method, one method a move.

What a method changed is committed before its events are published, so that nobody is told what a crash could undo.
"""

from .connection import NewerDatabase, StoreError, now_ms
from .database import SEQ_GAP, retry_writes
from .jobs import IDEMPOTENCY_MS
from .queries import Queries
from .segments import Segments
from .upkeep import Upkeep

__all__ = ["IDEMPOTENCY_MS", "SEQ_GAP", "NewerDatabase", "Store", "StoreError", "now_ms", "retry_writes"]


class Store(Segments, Queries, Upkeep):
    """The job records."""
