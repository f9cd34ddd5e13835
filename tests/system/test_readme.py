"""README's commands work as printed, and its tables are whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from clips import frame_times
from processes import Service

from faceswap import samples
from faceswap.config import Settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_THE_NETWORK = "example.org"
FRAMES = 30


def commands(heading: str) -> list[str]:
    """Return the shell blocks of a section."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that looks like a checkout after `make demo`, with a shorter clip."""
    monkeypatch.setattr(samples, "FRAMES", FRAMES)
    for name in ("faceswap", "migrations", "workflows"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "demo").mkdir()
    samples.make_clip(tmp_path / "demo" / "source.mp4")
    return tmp_path


@pytest.mark.timeout(15 * 60)
@pytest.mark.skipif(shutil.which("curl") is None, reason="these lines are for who has curl")
async def test_the_lines_of_readme_work_copied_and_pasted(folder: Path) -> None:
    start, *others = commands("Use it")
    assert "faceswap serve" in start
    async with Service(folder / "service") as service:
        for command in others:
            if NEEDS_THE_NETWORK in command:
                continue
            script = command.replace("http://127.0.0.1:8000", service.url)
            done = subprocess.run(
                ["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=5 * 60, env=os.environ
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
            if "curl -N" in command:
                assert "event: completed" in done.stdout
    for result in ("swapped.mp4", "grace.mp4"):
        assert len(frame_times(folder / result)) == FRAMES


def test_every_setting_stands_in_readme_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `FACESWAP_(\w+)` \| (.*?) \|", README, re.MULTILINE))
    assert set(rows) == {field.name.upper() for field in fields(Settings)}
    for field in fields(Settings):
        if isinstance(field.default, int):
            assert rows[field.name.upper()] == str(int(field.default))
        elif isinstance(field.default, str) and field.default:
            assert rows[field.name.upper()] == field.default


def test_every_chore_of_readme_is_in_the_makefile() -> None:
    chores = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)) <= chores
