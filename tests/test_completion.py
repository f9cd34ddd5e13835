"""Completion in the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import program
from waiting import WAIT_S

ASK = {
    "bash": """
        source "$1"
        COMP_WORDS=(faceswap ver) COMP_CWORD=1
        "$(complete -p faceswap | sed 's/.*-F //; s/ .*//')" faceswap ver faceswap
        echo "${COMPREPLY[@]}"
    """,
    "zsh": r"""
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "autoload -U compinit; compinit -u -D; source $1"
        zpty -w -n shell "faceswap ver"$'\t'
        zpty -r shell seen "*verify*"
        print -r -- "$seen"
    """,
    "fish": 'source $argv[1]; complete -C "faceswap ver"',
}
"""Programs that complete `faceswap ver` with the script that is their argument."""


@pytest.mark.parametrize("shell", ASK)
def test_a_shell_completes_what_faceswap_can_do(shell: str, tmp_path: Path) -> None:
    path = program(shell, shell)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = tmp_path / "completion"
    with script.open("wb") as file:
        subprocess.run(["faceswap", "completion", shell], env=environ, stdout=file, check=True, timeout=WAIT_S)
    words = [script] if shell == "fish" else [shell, script]
    asked = subprocess.run(
        [path, "-c", ASK[shell], *words], env=environ, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert "verify" in asked.stdout, asked.stderr
