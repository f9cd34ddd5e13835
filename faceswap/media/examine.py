"""Reading of what a file says of its making, for `faceswap verify`. It runs in a worker process."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from ..errors import UnsupportedMedia
from ..watermark import Plane, Reader
from . import still_watermark
from .credentials import read_credentials
from .facts import Provenance
from .stills import is_still, read_still
from .tag import read_tag
from .timeline import decoded, open_picture


def examine(path: Path) -> Provenance:
    """Return the tag, the credentials and the watermark of a video or picture. Raises Problem.

    Its code is `not_a_video`, or one of `read_still`.
    """
    try:
        mark = read_still_watermark(path) if is_still(path) else read_watermark(path)
        return Provenance(read_tag(path), read_credentials(path), mark)
    except (av.FFmpegError, UnicodeError) as error:
        raise UnsupportedMedia("The file is not a video or picture that can be read.", code="not_a_video") from error


def read_still_watermark(path: Path) -> str | None:
    """Return the payload of a still picture's watermark in hexadecimal."""
    found = still_watermark.read(read_still(path)[1])
    return found.hex() if found else None


def read_watermark(path: Path) -> str | None:
    """Return the payload of the watermark in hexadecimal; what comes after damage is not looked at."""
    reader = Reader()
    with open_picture(path) as (container, stream):
        try:
            for frame in decoded(container, stream):
                found = reader.add(*_chroma(frame))
                if found is not None:
                    return found.hex()
                if reader.is_done:
                    return None
        except av.InvalidDataError:
            pass
    found = reader.read()
    return found.hex() if found else None


def _chroma(frame: VideoFrame) -> tuple[Plane, Plane]:
    width, height = max(frame.width // 2 * 2, 2), max(frame.height // 2 * 2, 2)
    planes = np.asarray(frame.reformat(width, height, "yuv420p").to_ndarray(), np.uint8)
    u, v = planes.reshape(-1)[width * height :].reshape(2, height // 2, width // 2)
    return u, v
