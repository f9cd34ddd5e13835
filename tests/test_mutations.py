"""The list of what `make mutate` breaks keeps up with the code."""

from __future__ import annotations

import re
from functools import cache

import pytest
from mutate import ROOT, mutations

LEAST = 60


@pytest.mark.parametrize("file", sorted({mutation.file for mutation in mutations()}))
def test_every_mutation_still_applies_and_names_tests_that_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for mutation in (mutation for mutation in mutations() if mutation.file == file):
        broken = mutation.broken(text)
        if file.endswith(".py"):
            compile(broken, file, "exec")
        for test in mutation.tests:
            path, _, name = test.partition("::")
            assert not name or name.partition("[")[0] in functions(path), test


@cache
def functions(path: str) -> set[str]:
    """Return the names of the functions in a file of tests."""
    return set(re.findall(r"def (\w+)\(", (ROOT / "tests" / path).read_text(encoding="utf-8")))


def test_the_list_is_long_and_says_everything_once() -> None:
    promises = [mutation.breaks for mutation in mutations()]
    assert len(promises) == len(set(promises)) >= LEAST
