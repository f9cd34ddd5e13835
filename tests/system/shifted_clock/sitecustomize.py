"""Python imports this at its start when this folder is on `PYTHONPATH`: the process then has a clock that can jump.

The file named by `CHAOS_CLOCK` holds the seconds by which it is wrong. Monotonic clocks stay as they are.
"""

import os
import time
from pathlib import Path

_file = Path(os.environ["CHAOS_CLOCK"])
_time, _time_ns = time.time, time.time_ns


def _wrong_by_s() -> int:
    return int(_file.read_text() or 0)


time.time = lambda: _time() + _wrong_by_s()
time.time_ns = lambda: _time_ns() + _wrong_by_s() * 1_000_000_000
