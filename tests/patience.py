"""Bounds of the service that a machine which stands still for seconds keeps, in tests that are not about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from waiting import WAIT_S

from faceswap import leaseholder, node, progress_reporter, tracing
from faceswap.api import service
from faceswap.files import s3
from faceswap.media import worker
from faceswap.store import postgres

Change = Callable[[ModuleType, str, Any], object]
"""Changes a value, by its module and name."""

LATER = 10
"""The multiple of its usual time that a look may take. Some tests wait for one that ends with its bound."""


def be_patient(change: Change) -> None:
    """Have any service wait longer for a worker and for a database."""
    change(worker, "PROBE_TIMEOUT_S", WAIT_S)
    for name in ("CONNECT", "ACQUIRE", "COMMAND", "ROLLBACK"):
        # Short enough for who waits for a silent one to be noticed.
        change(postgres, f"{name}_TIMEOUT_S", WAIT_S / 4)
    change(postgres, "_BEGIN", re.sub(r"\d+", str(int(WAIT_S / 4 * 1000)), postgres._BEGIN))


def be_patient_with_looks(change: Change) -> None:
    """Have the service in a test's own process wait longer for what it can do without, too."""
    for module, name in (
        (service, "CHECK_TIMEOUT_S"),
        (s3, "LOOK_S"),
        (s3, "PREVIEW_S"),
        (progress_reporter, "PREVIEW_TIMEOUT_S"),
        (leaseholder, "RELEASE_S"),
        (node, "LEAVE_S"),
        (tracing, "FLUSH_S"),
    ):
        change(module, name, LATER * getattr(module, name))
