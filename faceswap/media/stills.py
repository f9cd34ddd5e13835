"""Still pictures, read as they are meant to be shown. It runs in a worker process: the bytes may be hostile."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import Unprocessable, UnsupportedMedia
from ..limits import MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SIDE, too_large
from .facts import ConvertedFacts
from .timeline import open_media, packets

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = NDArray[np.uint8]

HEAD_BYTES = 64
"""The first bytes of a file, by which its format is told."""

MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
}
BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heif", b"heix": "heif", b"mif1": "heif", b"msf1": "heif"}
"""Brands of ISO base media files that hold pictures (ISO/IEC 23008-12, AV1 Image File Format); the first one counts."""

FOREIGN = {"heif": "HEIF", "avif": "AVIF"}
"""Formats that ComfyUI cannot read, or reads on their side, and their names in Pillow."""

NOT_AN_IMAGE = UnsupportedMedia(
    "The file is not a complete PNG, JPEG, WebP, HEIC, AVIF, BMP, GIF or TIFF image.", code="not_an_image"
)
TOO_LARGE = Unprocessable(
    f"The image is too large; at most {MAX_SIDE:,} pixels a side and {MAX_PIXELS:,} in all are taken.",
    code="image_too_large",
)


def still_format(head: bytes) -> str | None:
    """Return the format of the picture that begins with `head`, `HEAD_BYTES` long; None for anything else."""
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}
        return next((name for brand, name in BRANDS.items() if brand in brands), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def is_still(path: Path) -> bool:
    """Return whether a file is a picture; a GIF that moves is none."""
    found = still_format(_head(path))
    if found != "gif":
        return found is not None
    with contextlib.suppress(av.FFmpegError), open_media(path) as container:
        frames = packets(container, "video")
        return next(frames, None) is None or next(frames, None) is None
    return True


def read_still(path: Path) -> tuple[str, Picture]:
    """Return the format and the pixels of a picture, upright, uint8 (H, W, 3) BGR.

    Raises UnsupportedMedia (`not_an_image`) or Unprocessable (`image_too_large`).
    """
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise Unprocessable(f"The image file is larger than {MAX_IMAGE_BYTES >> 20} MiB.", code="image_too_large")
    found = still_format(_head(path))
    if found is None:
        raise NOT_AN_IMAGE
    data = path.read_bytes()
    return found, _read_foreign(data, FOREIGN[found]) if found in FOREIGN else _read(data)


def convert(path: Path, out: Path) -> ConvertedFacts:
    """Write the picture at `path` to `out` as PNG: upright, in sRGB. Raises as `read_still` does."""
    _, bgr = read_still(path)
    _, png = cv2.imencode(".png", bgr)
    out.write_bytes(png.tobytes())
    return ConvertedFacts(len(png))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _read(data: bytes) -> Picture:
    """Decode with OpenCV, which turns a picture as its EXIF asks, and checks its limits before it allocates."""
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise TOO_LARGE from error
    if picture is None:
        raise NOT_AN_IMAGE
    return np.asarray(picture, np.uint8)


def _read_foreign(data: bytes, name: str) -> Picture:
    """Decode with Pillow, which also knows the orientation that is kept outside of EXIF."""
    from PIL import Image, ImageOps

    if name == "HEIF":
        import pi_heif  # type: ignore[import-untyped]  # it ships no types

        pi_heif.register_heif_opener()
    try:
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            if too_large(*image.size):
                raise TOO_LARGE
            upright = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(np.asarray(_in_srgb(upright))[..., ::-1])
    except Image.DecompressionBombError as error:
        raise TOO_LARGE from error
    except (OSError, SyntaxError, ValueError, RuntimeError, EOFError) as error:
        raise NOT_AN_IMAGE from error


def _in_srgb(image: Image) -> Image:
    """Return a picture in RGB, its colours brought from its own profile to that of screens."""
    from PIL import ImageCms

    rgb = image.convert("RGB")
    profile = image.info.get("icc_profile")
    if not profile:
        return rgb
    with contextlib.suppress(ImageCms.PyCMSError, OSError):
        own, screen = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(rgb, own, screen) or rgb
    return rgb
