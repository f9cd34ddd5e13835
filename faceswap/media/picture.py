"""Still pictures as targets: made for the engine, checked, and written as results. It runs in a worker process."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from .. import durable
from ..errors import JobFailure, Problem
from ..label import Label
from . import still_watermark
from .compare import Reference, blocks, grid
from .facts import JoinFacts, StillFacts, Verdict
from .frames import decode_frames
from .join import disk_full_fails_the_job
from .paths import partial_path, unsigned_path
from .probe import clockwise
from .stills import read_still
from .tag import tag_packet
from .timeline import read_source

Picture = NDArray[np.uint8]

PNG_LEVEL = 1
"""Of zlib's compression for pictures on their way to the engine: the quickest."""
CHANGED_BY, UNCHANGED_BELOW = 16, 8
"""Steps of 8 bits by which a swapped face differs somewhere, and by which two decoders of one file may differ."""
LEAST_CHANGED_PIXELS = 16
SCALING_NOISE = 3.0
"""Steps of 8 bits by which a picture differs where it was scaled, at most."""
BLACK_LEVEL, NOT_BLACK_LEVEL = 16, 48

CLEAR_FORMATS, CLEAR_KINDS = ("PNG", "WEBP", "GIF", "TIFF"), ("png", "webp")
"""Pictures that may be transparent in places, as targets and as results."""
CLEARNESS_LOST = (
    "The picture is transparent in places, which a JPEG cannot be; ask for `format` png or webp to keep that."
)
PROFILED_FORMATS, RGB_MODES = ("PNG", "JPEG", "WEBP", "TIFF"), ("RGB", "RGBA", "P")
PILLOW_NAMES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}

DAMAGED = JobFailure("output_damaged", "The engine's result is no picture that can be decoded.", transient=True)
FILTERED = JobFailure(
    "content_filtered",
    "The engine's content filter blacked out the result; use other material or turn the filter off.",
)


def make_still(source: Path, out: Path, at: float | None) -> StillFacts:
    """Write the picture that is to be changed to `out`, a PNG, upright, complete or not at all.

    It is the still picture `source`, or the frame that the video `source` shows `at` seconds. Raises JobFailure
    (`input_damaged`, `disk_full`).
    """
    picture = _of_still(source) if at is None else _of_video(source, at)
    partial = partial_path(out)
    try:
        with disk_full_fails_the_job():
            _, png = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
            partial.write_bytes(png.tobytes())
            durable.rename(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return StillFacts(picture.shape[1], picture.shape[0])


def _of_still(source: Path) -> Picture:
    try:
        return read_still(source)[1]
    except Problem as problem:
        raise JobFailure("input_damaged", "The stored picture can no longer be read; send it again.") from problem


def _of_video(source: Path, at: float) -> Picture:
    timeline = read_source(source)
    frame = next(decode_frames(source, timeline, [timeline.index_at(at)]), None)
    if frame is None:
        raise JobFailure("input_damaged", f"The video is damaged: it cannot be decoded at {at:g} seconds.")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="bgr24"), -clockwise(frame) // 90))


def verify_still(result: Path, still: Path) -> Verdict:
    """Check that `result` is a picture of `still` with a face changed.

    Raises JobFailure: `output_damaged`, `content_filtered`.
    """
    ours, theirs = _read(result), _read(still)
    if int(ours.max()) <= BLACK_LEVEL and int(theirs.max()) >= NOT_BLACK_LEVEL:
        raise FILTERED
    if ours.shape == theirs.shape:
        return Verdict(1, _share(_is_changed(ours, theirs)), ())
    size, own_size = theirs.shape[1::-1], ours.shape[1::-1]
    warning = f"The result is {own_size[0]}×{own_size[1]}, the picture {size[0]}×{size[1]}."
    source = blocks(_frame(theirs), 0, grid(*size))
    noise = np.full(source.shape[:2], SCALING_NOISE, np.float32)
    changed = Reference(source, noise, noise).changed(blocks(_frame(ours), 0, grid(*size)))
    return Verdict(1, _share(changed), (warning,))


def _is_changed(ours: Picture, theirs: Picture) -> bool | None:
    """Return whether a face was changed; None when the difference may be one of decoders, or of a face hardly seen."""
    difference = cv2.absdiff(ours, theirs).max(axis=2)
    if int(difference.max()) < UNCHANGED_BELOW:
        return False
    return True if np.count_nonzero(difference >= CHANGED_BY) >= LEAST_CHANGED_PIXELS else None


def _share(changed: bool | None) -> float | None:
    return None if changed is None else float(changed)


def _frame(picture: Picture) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, "bgr24")


def _read(path: Path) -> Picture:
    """Read a picture that an engine made, or that was made for it."""
    try:
        return read_still(path)[1]
    except Problem as problem:
        raise DAMAGED from problem


def finish_picture(
    result: Path,
    source: Path,
    out: Path,
    *,
    kind: str,
    crf: int,
    prompt_id: str,
    label: str,
    payload: str | None,
    signing: tuple[Path, Path] | None,
) -> JoinFacts:
    """Write the engine's picture to `out` as `kind` (png, jpg, webp), with a label unless it is empty.

    It gets a watermark of `payload` (hexadecimal) unless that is None, keeps the colour profile of `source` and is
    transparent where that is, says that job `prompt_id` made it, and is signed with the certificate and key in
    `signing`. `out` appears complete or not at all. Raises JobFailure (`output_damaged`, `disk_full`, `not_signed`).
    """
    picture = _read(result)
    opacity = _opacity(source, picture.shape[1], picture.shape[0])
    if label:
        Label(label, (picture.shape[1], picture.shape[0])).draw(picture)
    if payload is not None:
        still_watermark.draw(picture, bytes.fromhex(payload))
    warnings = (CLEARNESS_LOST,) if opacity is not None and kind not in CLEAR_KINDS else ()
    if opacity is not None and not warnings:
        picture = np.dstack([picture, opacity])
    partial, unsigned = partial_path(out), unsigned_path(out)
    try:
        with disk_full_fails_the_job():
            partial.write_bytes(_encoded(picture, kind, crf, prompt_id, _profile(source)))
            if signing is not None:
                from .credentials import sign  # here, because a service without a certificate needs none of it

                partial.replace(unsigned)
                sign(unsigned, partial, source, prompt_id, *signing)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            durable.rename(partial, out)
    finally:
        partial.unlink(missing_ok=True)
        unsigned.unlink(missing_ok=True)
    return JoinFacts(size, digest, 1, 0.0, warnings)


def _encoded(picture: Picture, kind: str, crf: int, prompt_id: str, profile: bytes | None) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    packet = tag_packet(prompt_id)
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if kind == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet)
    else:
        options |= {"xmp": packet.encode(), "quality": picture_quality(crf)}
    if kind == "jpg":
        options["subsampling"] = 0
    data = io.BytesIO()
    order = cv2.COLOR_BGR2RGB if picture.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    Image.fromarray(cv2.cvtColor(picture, order)).save(data, PILLOW_NAMES[kind], **options)
    return data.getvalue()


def picture_quality(crf: int) -> int:
    """Return the quality (0–100) of JPEG and WebP for x264's `crf`: 95 for 20, 83 for 37, 67 for 51."""
    return round(100 - crf * crf / 80)


def _opacity(source: Path, width: int, height: int) -> Picture | None:
    """Return how opaque a still picture is, upright, uint8 (H, W); None where it is so everywhere."""
    from PIL import Image, ImageOps

    with suppress(OSError, SyntaxError, ValueError), Image.open(source, formats=CLEAR_FORMATS) as image:
        if image.has_transparency_data:
            opacity = np.asarray(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A").resize((width, height)))
            return None if int(opacity.min()) == 255 else opacity
    return None


def _profile(source: Path) -> bytes | None:
    """Return the colour profile of the pixels of a still picture; None where they are meant for a screen as they are.

    The formats that are left out were brought to a screen's colours when they were read.
    """
    from PIL import Image

    with suppress(OSError, SyntaxError, ValueError), Image.open(source, formats=PROFILED_FORMATS) as image:
        profile = image.info.get("icc_profile")
        return profile if isinstance(profile, bytes) and image.mode in RGB_MODES else None
    return None
