"""The only SQL: jobs, segments and events in a database. One transaction a method, one method a move.

What a method changed is committed before its events are published, so that nobody is told what a crash could undo.
"""

from .connection import CommitUnknown, NewerDatabase, StoreError, now_ms
from .database import find_version, retry_writes
from .engine_files import EngineFile, EngineFiles
from .jobs import IDEMPOTENCY_MS
from .keys import ApiKey, Keys
from .leases import JANITOR_LEASE, LOCAL_HOLDER, Lease, LeaseLost, backend_lease, join_lease, upload_lease
from .nodes import LeaseRow, NodeRow
from .queries import Queries, Standing
from .rows import UNKNOWN_JOB
from .segments import Segments
from .sqlite import copy_database
from .together import Together
from .transfer import Transfer, TransferRefused
from .turns import check_queue_of_key
from .upkeep import Upkeep
from .uploads import Uploads

__all__ = [
    "IDEMPOTENCY_MS",
    "JANITOR_LEASE",
    "LOCAL_HOLDER",
    "UNKNOWN_JOB",
    "ApiKey",
    "CommitUnknown",
    "EngineFile",
    "Lease",
    "LeaseLost",
    "LeaseRow",
    "NewerDatabase",
    "NodeRow",
    "Standing",
    "Store",
    "StoreError",
    "Together",
    "TransferRefused",
    "backend_lease",
    "check_queue_of_key",
    "copy_database",
    "find_version",
    "join_lease",
    "now_ms",
    "retry_writes",
    "upload_lease",
]


class Store(Segments, Queries, Upkeep, Keys, Transfer, EngineFiles, Uploads):
    """The job records."""
