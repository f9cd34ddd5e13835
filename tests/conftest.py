"""Fixtures of all tests. This file also puts the helpers beside it on the import path."""

from hypothesis import HealthCheck, settings

# On a busy machine an example may take any time.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
