"""The list of what `make mutate` breaks keeps up with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mutate import ROOT, Mutation, mutations

LEAST = 60


@pytest.mark.parametrize("mutation", mutations(), ids=lambda mutation: mutation.breaks)
def test_every_mutation_still_applies_and_names_tests_that_exist(mutation: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((ROOT / mutation.file).read_bytes())
    mutation.apply(tmp_path)
    if copy.suffix == ".py":
        compile(copy.read_text(encoding="utf-8"), mutation.file, "exec")
    for test in mutation.tests:
        path, _, name = test.partition("::")
        text = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"def {re.escape(name.partition('[')[0])}\(", text), test


def test_the_list_is_long_and_says_everything_once() -> None:
    promises = [mutation.breaks for mutation in mutations()]
    assert len(promises) == len(set(promises)) >= LEAST
