"""Run every benchmark in turn, or those named: `python bench/run.py upload start`."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))


def main() -> None:
    names = sys.argv[1:] or sorted(
        path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "common", "bare")
    )
    for name in names:
        module = importlib.import_module(name)
        asyncio.run(module.main())


if __name__ == "__main__":
    main()
