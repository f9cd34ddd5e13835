"""The wheel works on its own: no file is missing from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
from processes import Child, eventually

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("faceswap", "migrations", "workflows", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def build_wheel(folder: Path) -> Path:
    """Build the wheel of a copy of the sources, so that nothing is left in the checkout."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / "src" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "src"]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def sources(root: Path) -> set[str]:
    """Return the names, in a wheel, of every file of the packages below `root`."""
    names = {path.relative_to(root).as_posix() for path in (root / "faceswap").rglob("*") if path.is_file()}
    for package in ("migrations", "workflows"):
        names |= {f"faceswap/{package}/{path.name}" for path in (root / package).iterdir() if path.is_file()}
    return names


async def test_an_installed_wheel_serves_its_page_with_its_own_workflow_migrations_and_engine(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        wheel.extractall(installed)
    # The editable installation of the suite would lend the wheel a package that it lacks.
    missing = sources(tmp_path / "src") - set(wheel.namelist())
    assert not missing
    env = {"PYTHONPATH": str(installed), "FACESWAP_MIN_FREE_MB": "0"}
    data = tmp_path / "data"
    service = Child(
        tmp_path / "log", "faceswap", "serve", "--port", "0", "--data-dir", str(data), env=env, cwd=tmp_path
    )
    async with service, aiohttp.ClientSession(service.url) as session:

        async def ready() -> bool:
            async with session.get("/readyz") as answer:
                return answer.status == 200

        await eventually(ready)
        async with session.get("/", headers={"Accept": "text/html"}) as answer:
            assert "<html" in await answer.text()
        for file in ("app.js", "style.css"):
            async with session.get(f"/web/{file}") as answer:
                assert answer.status == 200
        location = subprocess.check_output(
            [sys.executable, "-c", "import faceswap.samples as s; print(s.FACE, s.FACE.is_file())"],
            env=env,
            cwd=tmp_path,
            text=True,
        )
        assert location.split() == [str(installed / "faceswap" / "samples" / "grace_hopper.jpg"), "True"]
