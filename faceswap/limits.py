"""The limits of untrusted media for the processes that decode it: the service's workers and the engine."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.video.stream import VideoStream

MAX_SIDE = 8192
MAX_PIXELS = 50_000_000
MAX_IMAGE_BYTES = 160 << 20
"""The largest file of a picture: of `MAX_PIXELS`, no PNG is larger."""
MAX_TRACKS = 64

DECODER_THREADS = 4
"""At most: each holds pictures of its own in memory."""

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "max_streams": str(MAX_TRACKS + 1),
    "max_pixels": str(MAX_PIXELS),
}
"""For `av.open`, by which every demuxer and decoder holds the limits itself. A file with more tracks either shows
`MAX_TRACKS + 1` of them or ends in a MemoryError, as its demuxer has it."""

_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The file that names a process's control group, and the folder of all groups."""

FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "2"}
"""Environment of a process that works on pictures: its steps are threads already, and what numpy and OpenCV share out
within one is small. On a machine of many cores they spend more on handing it round."""

DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
"""For a decoder: a stream may declare a small picture and grow later. What is larger ends in av.ArgumentError."""


ENGINE_BYTES = 5 << 30
"""Heap and private mappings of an embedded engine. A clip of 4K needs a third of it, one of 8K four fifths."""

ENGINE_SHARE = 0.75
"""Of the machine's memory that embedded engines may have."""


def machine_bytes() -> int:
    """Return the memory that this process may have: the machine's, or less where its control group has a limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in _group_limits("memory.max") if limit.isdigit())])


def machine_cores() -> int:
    """Return the cores that this process may keep busy, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for limit in _group_limits("cpu.max"):
        quota, _, period = limit.partition(" ")
        if quota.isdigit() and period.isdigit():
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def _group_limits(name: str) -> Iterator[str]:
    """Yield the texts of a file of this process's control group (version 2) and of those above it, where it has any."""
    with suppress(OSError):
        lines = _GROUP.read_text("utf-8").splitlines()
        group = PurePosixPath(next((line[3:] for line in lines if line.startswith("0::")), "/"))
        for folder in (group, *group.parents):
            with suppress(OSError):
                yield (_GROUPS / folder.relative_to("/") / name).read_text("ascii").strip()


def too_large(width: int, height: int) -> bool:
    """Return true if a picture, in pixels, is larger than is decoded."""
    return max(width, height) > MAX_SIDE or width * height > MAX_PIXELS


def bound_decoder(stream: VideoStream, large_pixels: int) -> None:
    """Bound the pictures and the threads of a stream's decoder.

    Each thread holds pictures of its own in memory, so pictures of more than `large_pixels` are decoded by one.
    """
    context = stream.codec_context
    context.options = DECODER_OPTIONS
    stream.thread_type = "AUTO"
    context.thread_count = 1 if context.width * context.height > large_pixels else DECODER_THREADS


def limit_process(data_bytes: int, *, may_raise: bool = False) -> None:
    """Bound the memory of this process (heap and private mappings), its core dumps, and the pictures OpenCV decodes.

    Call it before OpenCV is imported: it reads its limits then. With `may_raise` the process may raise the first bound.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, hard if may_raise else data_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)
    os.environ["OPENCV_IO_MAX_IMAGE_WIDTH"] = str(MAX_SIDE)
    os.environ["OPENCV_IO_MAX_IMAGE_HEIGHT"] = str(MAX_SIDE)
