"""Fixtures of all tests. This file also puts the helpers beside it on the import path."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example may take any time.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SCHEDULER = os.sched_getscheduler(0)


@pytest.fixture(autouse=True)
def usual_scheduler() -> Iterator[None]:
    """Check that no test leaves its process a real-time priority, with which it would starve the others."""
    yield
    assert os.sched_getscheduler(0) == SCHEDULER
