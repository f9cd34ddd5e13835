"""The files of jobs, wherever a service keeps them, looked at beside it."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from processes import Service, files_in
from s3_servers import S3Server
from system.records import Row

OF_A_NODE = ("lock", "node", "engine/", "ballast")
"""Names in a node's data folder that are no files of jobs."""


class DataFolder:
    """The files in the data folder of one service. Names that hold an epoch or digest are given as patterns."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def names(self) -> set[str]:
        """Return what is there of jobs."""
        return {name for name in self._service.files() if not name.startswith("lost+found/")}

    def input(self, row: Row) -> str:
        """Return the name of a row of the table `input`."""
        return f"inputs/{row['prompt_id']}/{row['file']}"

    def result(self, job: Row) -> str:
        """Return the name of a job's result."""
        return f"outputs/{job['result_file']}"

    def scratch(self, prompt_id: str) -> set[str]:
        """Return the names of what may be left of a job until its inputs are erased, for a retry."""
        # A service that was killed while it checked an output leaves that too.
        return {f"work/{prompt_id}/?????-*-*.mp4"}


class FilesOfNodes(DataFolder):
    """The files in a folder that nodes share, and what they have in folders of their own."""

    def __init__(self, folder: Path, services: list[Service]) -> None:
        self._folder = folder
        self._services = services

    async def names(self) -> set[str]:
        return {*files_in(self._folder), *self._of_nodes()}

    def _of_nodes(self) -> set[str]:
        return {
            f"{service.data_dir.parent.name}/{name}"
            for service in self._services
            for name in files_in(service.data_dir)
            if not name.startswith(OF_A_NODE)
        }

    def result(self, job: Row) -> str:
        return f"outputs/{job['prompt_id']}/*-{job['result_sha256']}.mp4"

    def scratch(self, prompt_id: str) -> set[str]:
        # A node that was frozen may write under a name of its own when the job has ended.
        return {f"work/{prompt_id}/*"}


class Bucket(FilesOfNodes):
    """The objects in a bucket below a prefix, and what nodes have in folders of their own."""

    def __init__(self, server: S3Server, bucket: str, prefix: str, services: list[Service]) -> None:
        super().__init__(Path(), services)
        self._server = server
        self._bucket = bucket
        self._prefix = f"{prefix}/"

    async def names(self) -> set[str]:
        return {*await asyncio.to_thread(self._keys), *self._of_nodes()}

    def _keys(self) -> set[str]:
        pages: Any = self._server.client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key.removeprefix(self._prefix) for key in keys}

    def input(self, row: Row) -> str:
        return f"inputs/{row['prompt_id']}/{PurePath(row['file']).stem}"

    def result(self, job: Row) -> str:
        return f"results/{job['prompt_id']}/*-{job['result_sha256']}.mp4"

    def scratch(self, prompt_id: str) -> set[str]:
        return {f"segments/{prompt_id}/*", f"previews/{prompt_id}"}


def missing_and_left(found: set[str], needed: set[str], allowed: set[str]) -> list[str]:
    """Return what is wrong: files that are missing, and files that belong to nothing."""
    faults = []
    left = set(found)
    for pattern in sorted(needed | allowed):
        matching = {name for name in found if fnmatchcase(name, pattern)}
        left -= matching
        # A result may be there a second time, from a former holder of the lease on its join: it goes with the job.
        if pattern in needed and not matching:
            faults.append(f"{pattern} is missing")
    return faults + [f"{name} belongs to nothing" for name in sorted(left)]
