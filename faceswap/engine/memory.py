"""The memory of the engine's process: its bound, what networks take beside it, and whether some of it is lost.

What counts is what the system bounds: heap and private mappings, in bytes. CUDA alone reserves gigabytes of them.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import machine
from ..limits import ENGINE_BYTES, ENGINE_SHARE, limit_process

_beside = 0
"""The bytes that networks have taken, by which the bound was raised."""


def limit() -> None:
    """Bound the memory of this process."""
    limit_process(min(ENGINE_BYTES, int(ENGINE_SHARE * machine.memory_bytes())), may_raise=True)


@contextmanager
def beside_the_bound(*, unbounded: bool = False) -> Iterator[None]:
    """Raise the bound by what is taken within, or lower it by what is given back.

    unbounded    true for what takes more at once than there is room for, as CUDA does
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = _taken()
    if unbounded:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        yield
    finally:
        _raise_bound(soft, _taken() - before)


def _raise_bound(soft: int, by: int) -> None:
    global _beside
    by = max(by, -_beside)
    _beside += by
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = soft if soft == resource.RLIM_INFINITY else soft + by
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def has_leaked() -> bool:
    """Return true if an engine at rest holds half of its memory: libraries leak when memory runs out, x264 the most.

    Prompts would fail for want of memory ever after; an engine that is started again has all of it.
    """
    bound, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return bound != resource.RLIM_INFINITY and _taken() - _beside > (bound - _beside) / 2


def _taken() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[5]) * resource.getpagesize()
