"""Fixtures of all tests. This file also puts the helpers beside it on the import path."""

import os
from collections.abc import Iterator

import pytest
from forks import ForkServer
from hypothesis import HealthCheck, settings
from patience import be_patient, be_patient_with_looks
from processes import Child

from faceswap.comfy import embedded
from faceswap.media import process

# On a busy machine an example may take any time.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SCHEDULER = os.sched_getscheduler(0)

os.environ["FACESWAP_ENGINES"] = "1"  # however many the machine has cores for


@pytest.fixture(autouse=True)
def one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the service in the test's own process start one embedded engine on any machine."""
    monkeypatch.setattr(embedded, "MOST_ENGINES", 1)


@pytest.fixture(autouse=True)
def usual_scheduler() -> Iterator[None]:
    """Check that no test leaves its process a real-time priority, with which it would starve the others."""
    yield
    assert os.sched_getscheduler(0) == SCHEDULER


@pytest.fixture(autouse=True)
def patient_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the service in the test's own process wait for what is slow on a busy machine."""
    be_patient(monkeypatch.setattr)
    be_patient_with_looks(monkeypatch.setattr)


@pytest.fixture(scope="session", autouse=True)
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Have whole processes of the service forked."""
    server = Child.forks = ForkServer(tmp_path_factory.mktemp("forks") / "socket")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def forked_workers(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the workers of services in the test's own process forked. The tests of the workers themselves start them."""
    monkeypatch.setattr(process.Child, "start", fork_server.start_worker)
