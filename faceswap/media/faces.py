"""The faces of a picture, or of one frame of a video: where they are, and how they look. In a worker process."""

from __future__ import annotations

import base64
import functools
from pathlib import Path

import cv2
import numpy as np

from ..engine.landmarks import Face, find_faces
from ..errors import Unprocessable
from .facts import ConvertedFacts, FaceFacts, FacesFacts, ShownFrame, VideoFacts
from .frames import decode_frames
from .probe import clockwise, probe_video
from .stills import Picture, is_still, read_still
from .timeline import read_timeline

THUMBNAIL_SIDE = 160
"""Pixels of a thumbnail's longer side, at most."""
THUMBNAIL_QUALITY = 85
MARGIN = 0.25
"""Surroundings that a thumbnail shows on each side of a face, as a share of the face."""
PORTRAIT_SIDE = 512
"""Pixels of a portrait's side: ReActor's detector works on 640, its embedding on 112."""
PORTRAIT_MARGIN = 0.5
"""Surroundings that a portrait shows on each side of a face, as a share of the face."""

DAMAGED = Unprocessable("The video is damaged: this frame cannot be decoded.", code="video_damaged")


def look_for_faces(path: Path, kind: str, at: float, max_frames: int) -> FacesFacts:
    """Find the faces of an `image`, or of the frame that a `video` shows `at` so many seconds, at its end the last.

    A video may be a picture too. Raises UnsupportedMedia and Unprocessable as `probe_image` and `probe_video` do.
    """
    if kind == "image" or is_still(path):
        return _described(read_still(path)[1], None)
    stat = path.stat()
    facts = _probed(path, stat.st_size, stat.st_mtime_ns, max_frames)
    timeline = read_timeline(path)
    number = timeline.index_at(at)
    frame = next(decode_frames(path, timeline, [number]), None)
    if frame is None:
        raise DAMAGED
    shown_at = max(0.0, float(timeline.time_of(number, None) - timeline.origin))
    shown = ShownFrame(shown_at, float(facts.duration), float(facts.frame_rate), facts.frames)
    upright = np.rot90(frame.to_ndarray(format="bgr24"), -clockwise(frame) // 90)
    return _described(np.ascontiguousarray(upright), shown)


def cut_portrait(path: Path, out: Path, index: int) -> ConvertedFacts:
    """Write the face `index` of a picture, or its last, to `out`: a square PNG of one size for all pictures.

    Raises UnsupportedMedia and Unprocessable as `probe_image` does, and `no_face_in_image`.
    """
    bgr = read_still(path)[1]
    faces = find_faces(bgr)
    if not faces:
        raise Unprocessable("The picture shows no face that can be found.", code="no_face_in_image")
    left, top, right, bottom = faces[min(index, len(faces) - 1)].box
    side = max(right - left, bottom - top) * (1 + 2 * PORTRAIT_MARGIN)
    x, y, side = round((left + right - side) / 2), round((top + bottom - side) / 2), max(1, round(side))
    height, width = bgr.shape[:2]
    part = bgr[max(0, y) : y + side, max(0, x) : x + side]
    beyond = max(0, -y), max(0, y + side - height), max(0, -x), max(0, x + side - width)
    square = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REPLICATE)
    interpolation = cv2.INTER_AREA if side > PORTRAIT_SIDE else cv2.INTER_CUBIC
    portrait = cv2.resize(square, (PORTRAIT_SIDE, PORTRAIT_SIDE), interpolation=interpolation)
    _, png = cv2.imencode(".png", portrait)
    out.write_bytes(png.tobytes())
    return ConvertedFacts(len(png))


@functools.lru_cache(maxsize=4)
def _probed(path: Path, size: int, changed: int, max_frames: int) -> VideoFacts:
    """Probe a video, once for all frames that are asked for; `size` and `changed` tell apart two of one name."""
    return probe_video(path, max_frames)


def _described(bgr: Picture, shown: ShownFrame | None) -> FacesFacts:
    height, width = bgr.shape[:2]
    faces = tuple(_describe(bgr, number, face) for number, face in enumerate(find_faces(bgr)))
    return FacesFacts(width, height, faces, shown)


def _describe(bgr: Picture, number: int, face: Face) -> FaceFacts:
    height, width = bgr.shape[:2]
    left, top, right, bottom = face.box
    x, y = max(0, round(left)), max(0, round(top))
    box = (x, y, min(width, round(right)) - x, min(height, round(bottom)) - y)
    return FaceFacts(number, box, round(face.score, 3), _thumbnail(bgr, face))


def _thumbnail(bgr: Picture, face: Face) -> str:
    """Return a small square around a face, cut off at the picture's edges, as the URI of a JPEG."""
    left, top, right, bottom = face.box
    reach = max(right - left, bottom - top) * (0.5 + MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    part = bgr[max(0, round(y - reach)) : round(y + reach), max(0, round(x - reach)) : round(x + reach)]
    scale = min(1.0, THUMBNAIL_SIDE / max(part.shape[:2]))
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
