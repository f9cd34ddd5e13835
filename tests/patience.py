"""Bounds of the service that a machine which stands still for seconds keeps, in tests that are not about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from waiting import WAIT_S

from faceswap.media import worker
from faceswap.store import postgres


def be_patient(change: Callable[[ModuleType, str, Any], object]) -> None:
    """Have each bound changed, by its module and name."""
    change(worker, "PROBE_TIMEOUT_S", WAIT_S)
    for name in ("CONNECT", "ACQUIRE", "COMMAND"):
        # Short enough for who waits for a silent one to be noticed.
        change(postgres, f"{name}_TIMEOUT_S", WAIT_S / 4)
    change(postgres, "_BEGIN", re.sub(r"\d+", str(int(WAIT_S / 4 * 1000)), postgres._BEGIN))
