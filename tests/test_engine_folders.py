"""The engine's three folders: no name leads out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from faceswap.engine.folders import Folders, OutsideError


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Make an engine's folders, with links that lead out of them."""
    folders = Folders(tmp_path / "engine")
    (tmp_path / "secret").write_text("a face")
    (tmp_path / "engine" / "input" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "engine" / "input" / "away").symlink_to(tmp_path, target_is_directory=True)
    return folders


@pytest.mark.parametrize(
    ("kind", "subfolder", "name"),
    [
        ("input", "", "link"),
        ("input", "away", "secret"),
        ("input", "", "job/clip.mp4"),
        ("input", "", ".."),
        ("input", "", ""),
        ("input", "..", "secret"),
        ("input", "job/../../..", "secret"),
        ("input", "/etc", "passwd"),
        ("input", "", "/etc/passwd"),
        ("models", "", "clip.mp4"),
        ("../..", "", "secret"),
    ],
)
def test_what_leads_out_is_refused(folders: Folders, kind: str, subfolder: str, name: str) -> None:
    with pytest.raises(OutsideError):
        folders.file(kind, subfolder, name)


@pytest.mark.parametrize("name", ["../secret", "away/secret", "link", "clip.mp4 [models]/..", "../secret [output]"])
def test_a_graph_cannot_name_it_either(folders: Folders, name: str) -> None:
    with pytest.raises(OutsideError):
        folders.annotated(name)


def test_what_stays_inside_is_found(folders: Folders) -> None:
    assert folders.file("output", "job", "clip.mp4") == folders.root / "output" / "job" / "clip.mp4"
    assert folders.annotated("job/clip.mp4 [temp]") == folders.root / "temp" / "job" / "clip.mp4"


def test_what_a_former_process_was_still_writing_goes(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.folder("temp") / "0123.upload").write_bytes(b"half a face")
    kept = folders.folder("temp") / "job" / "clip_00001.mp4"
    kept.parent.mkdir()
    kept.write_bytes(b"a result that is still to be fetched")
    folders.delete_partial()
    assert [path for path in folders.folder("temp").rglob("*") if path.is_file()] == [kept]
