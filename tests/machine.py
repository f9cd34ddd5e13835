"""The needs of some tests that pip cannot bring."""

from __future__ import annotations

import os
import shutil

import pytest


def need(lack: str) -> None:
    """Skip the test with what the machine lacks, if it lacks anything; where `.ci/run` prepared it, fail."""
    if not lack:
        return
    if os.environ.get("FACESWAP_CI") == "1":
        pytest.fail(lack)
    pytest.skip(lack)


def program(name: str, package: str) -> str:
    """Return the path of a program of one of Debian's packages."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    need("" if path else f"{name} is not installed: apt-get install {package}")
    return str(path)
