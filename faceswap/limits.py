"""The limits of untrusted media for the processes that decode it: the service's workers and the engine."""

from __future__ import annotations

import os
import resource
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

FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "2"}
"""Environment of a process that works on pictures: its steps are threads already, and what numpy and OpenCV share out
within one is small. On a machine of many cores they spend more on handing it round."""

ENGINE_BYTES = 5 << 30
"""Heap and private mappings of an embedded engine. A clip of 4K needs a third of it, one of 8K four fifths."""

ENGINE_SHARE = 0.75
"""Of the machine's memory that embedded engines may have."""

DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
"""For a decoder: a stream may declare a small picture and grow later. What is larger ends in av.ArgumentError."""


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
