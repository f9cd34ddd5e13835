"""The places where the files of jobs can be, each as several nodes see it, and what is really stored there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import files_in
from s3_servers import KINDS, s3_client, s3_place, unfinished

from faceswap.config import Settings
from faceswap.files import Files, open_files

PLACES = ("local", "folder", *KINDS)
SHARED = PLACES[1:]


@dataclass
class Place:
    """A place for files, empty at first."""

    kind: str
    folder: Path
    url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def bucket(self) -> str:
        return self.url.split("/")[2]

    def data_dir(self, node: str) -> Path:
        """Return the data folder of a node; a local place has one node only."""
        return self.folder / ("data" if self.kind == "local" else node)

    def files(self, node: str = "one") -> Files:
        """Return the files as a node sees them, before its start."""
        return open_files(Settings(self.data_dir(node), files_url=self.url), node)

    async def started(self, node: str = "one") -> Files:
        """Return the files as a node sees them."""
        files = self.files(node)
        await files.start()
        return files

    def stored(self) -> list[str]:
        """Return the names of all that is stored, below the place."""
        if self.kind in ("local", "folder"):
            return files_in(Path(self.url) if self.url else self.data_dir("one"))
        prefix = self.url.split("/", 3)[3] + "/"
        pages = s3_client(self.kind).get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", ()))

    def unfinished(self) -> list[str]:
        """Return the multipart uploads that are neither finished nor aborted."""
        if not self.url.startswith("s3://"):
            return []
        keys, prefix = unfinished(s3_client(self.kind), self.bucket), self.url.split("/", 3)[3]
        return [key for key in keys if key.startswith(prefix)]


def make_place(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Make a place; the environment leads to it until the test is over."""
    if kind == "local":
        return Place(kind, folder)
    if kind == "folder":
        shared = folder / "shared"
        shared.mkdir()
        return Place(kind, folder, str(shared))
    url, environment = s3_place(kind)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Place(kind, folder, url, environment)
