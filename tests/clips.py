"""Small test videos whose every frame carries its number, readable after any encoding."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
BITS = 12

KEPT_BYTES = 1 << 20
"""The size up to which a clip is kept, to be made once only in each process of the suite."""
_made: dict[tuple[Any, ...], bytes] = {}

JOB = "5fb4bde0-1d0c-4c1a-9d9d-0a3cf2d3b9c7"
"""The id of a job, for what carries one."""


def numbered(number: int, width: int = 128, height: int = 96) -> Picture:
    """Draw an RGB picture with `number` as a row of black and white cells over a gradient."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([60 + x * 120 // width, 60 + y * 120 // height, 90 + 0 * x], axis=2).astype(np.uint8)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        picture[: height // 3, left:right] = 235 if number >> bit & 1 else 20
    return picture


def read_number(picture: Picture) -> int:
    """Return the number that `numbered` drew, from a decoded RGB or grey picture."""
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    height, width = grey.shape
    cells = grey[height // 12 : height // 4]
    number = 0
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        number |= int(cells[:, left + 2 : right - 2].mean() > 128) << bit
    return number


def read_numbers(path: Path) -> list[int]:
    """Return the numbers of all frames of a video, in the order they are shown."""
    with av.open(str(path)) as container:
        return [read_number(frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]


def make_clip(
    path: Path,
    frames: int = 24,
    *,
    rate: Fraction = Fraction(24),
    size: tuple[int, int] = (128, 96),
    draw: Callable[[int, int, int], Picture] = numbered,
    first_number: int = 0,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    video_start: int = 0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    b_frames: int = 2,
    crf: int = 20,
    gop: int = 12,
    sounds: Sequence[str] = (),
    sound_s: float | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode a clip, or copy it where the very same was made before, and return its path.

    times          presentation time of each frame in ticks of `time_base`: variable frame rate
    video_start    ticks of the time base by which the picture starts late
    sounds         a codec for each sound track (a tone that differs from track to track)
    rotation       degrees clockwise that a player has to turn the stored picture
    """
    time_base = time_base or 1 / rate
    made = (
        *(path.suffix, frames, rate, size, draw, first_number, tuple(times or ()), time_base, video_start, codec),
        *(pix_fmt, b_frames, crf, gop, tuple(sounds), sound_s, rotation, tuple((options or {}).items())),
    )
    if made in _made:
        path.write_bytes(_made[made])
        return path
    with usual_priority(), av.open(str(path), "w", options=options or {}) as output:
        video = output.add_stream(codec, rate=rate, options=_encoder_options(codec, b_frames, crf, gop))
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.codec_context.time_base = time_base
        if rotation:
            video.set_display_rotation(-rotation)
        tracks = [output.add_stream(name, rate=48000, layout="stereo") for name in sounds]
        seconds = sound_s if sound_s is not None else frames / float(rate)
        for number, track in enumerate(tracks):
            for sound in _tone(220 * (number + 1), seconds, track.codec_context.format.name):
                output.mux(track.encode(sound))
            output.mux(track.encode(None))
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(first_number + i, *size), format="rgb24")
            frame.pts = video_start + (times[i] if times else i)
            frame.time_base = time_base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    if path.stat().st_size < KEPT_BYTES:
        _made[made] = path.read_bytes()
    return path


@contextmanager
def usual_priority() -> Iterator[None]:
    """Encode at the usual priority: root's thread is given a real-time one by libsvtav1, which its children inherit."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _encoder_options(codec: str, b_frames: int, crf: int, gop: int) -> dict[str, str]:
    if codec != "libx264":
        return {"g": str(gop)}
    return {"crf": str(crf), "g": str(gop), "bf": str(b_frames), "preset": "veryfast", "b_strategy": "0"}


def _tone(pitch: float, seconds: float, sample_format: str) -> Iterable[av.AudioFrame]:
    total = round(seconds * 48000)
    wave = np.sin(np.arange(total) * (2 * np.pi * pitch / 48000)) * 0.3
    wave += np.random.default_rng(int(pitch)).normal(0, 0.02, total)
    resampler = av.AudioResampler(format=sample_format, layout="stereo", rate=48000)
    for start in range(0, total, 1024):
        block = wave[start : start + 1024].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([block, block]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        yield from resampler.resample(frame)


def sound_packets(path: Path) -> list[list[tuple[bytes, float]]]:
    """Return for each sound track its packets and their times in seconds."""
    with av.open(str(path)) as container:
        tracks: dict[int, list[tuple[bytes, float]]] = {s.index: [] for s in container.streams.audio}
        for packet in container.demux():
            if packet.size and packet.stream_index in tracks:
                tracks[packet.stream_index].append((bytes(packet), float(packet.pts * packet.time_base)))
    return list(tracks.values())


def frame_times(path: Path) -> list[float]:
    """Return the time in seconds at which each frame is shown."""
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def cut_short(path: Path, out: Path, share: float) -> Path:
    """Write the first `share` (0–1) of a file."""
    data = path.read_bytes()
    out.write_bytes(data[: int(len(data) * share)])
    return out


def _boxes(data: bytes, start: int, end: int) -> Iterable[tuple[bytes, int, int]]:
    while start < end:
        size, name = struct.unpack_from(">I4s", data, start)
        yield name, start, start + size
        start += size


def _find_box(data: bytes, *names: bytes) -> tuple[int, int]:
    """Return start and end of the first MP4 box at the path `names`."""
    start, end = -8, len(data)
    for name in names:
        start, end = next((a, b) for found, a, b in _boxes(data, start + 8, end) if found == name)
    return start, end


def with_edit_list(path: Path, out: Path, *, skipped: int, shown: int) -> Path:
    """Copy an mp4 with another first edit list.

    It starts `skipped` media ticks later and shows `shown` movie ticks (milliseconds).
    """
    data = bytearray(path.read_bytes())
    start, _ = _find_box(bytes(data), b"moov", b"trak", b"edts", b"elst")
    duration, media_time = struct.unpack_from(">Ii", data, start + 16)
    struct.pack_into(">Ii", data, start + 16, min(shown, duration), media_time + skipped)
    out.write_bytes(data)
    return out


def with_lying_header(path: Path, out: Path) -> Path:
    """Copy an mp4 whose headers then declare a hundred times its length."""
    data = bytearray(path.read_bytes())
    for names, offset in (((b"mvhd",), 24), ((b"trak", b"tkhd"), 28), ((b"trak", b"mdia", b"mdhd"), 24)):
        start, _ = _find_box(bytes(data), b"moov", *names)
        duration = struct.unpack_from(">I", data, start + offset)[0]
        struct.pack_into(">I", data, start + offset, duration * 100)
    out.write_bytes(data)
    return out


def growing(path: Path, *sizes: tuple[int, int]) -> Path:
    """Make a clip with one plain picture of each size (width, height); its headers declare only the first."""
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=24, options={"strict": "unofficial"})
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        for number, (width, height) in enumerate(sizes):
            _, jpeg = cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))
            packet = av.Packet(jpeg.tobytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 24)
            packet.is_keyframe = True
            output.mux(packet)
    return path


def many_tracks(path: Path, count: int) -> Path:
    """Make a clip with so many tracks, each of one small picture; the name tells the container."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("mpeg4", rate=24) for _ in range(count)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(np.full((96, 64), 90, np.uint8), "yuv420p")
            frame.pts = 0
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


def huge_png(path: Path, width: int = 60000, height: int = 60000) -> Path:
    """Make a few bytes of PNG that declare a picture of `width`×`height`."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def padded(path: Path, size: int) -> Path:
    """Make a playable clip of so many bytes: a `free` box follows the media. The file is sparse."""
    make_clip(path)
    with path.open("r+b") as file:
        padding = size - file.seek(0, 2)
        file.write(struct.pack(">I4sQ", 1, b"free", padding))
        file.truncate(size)
    return path
