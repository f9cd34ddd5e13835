"""Media files that were damaged or made to harm: mutations of good ones, and descriptions dressed as a video."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from clips import make_clip
from face_pictures import photograph
from media_samples import astronaut_frames

from faceswap.samples import FACE

FRAMES, SIZE = 6, (128, 128)
CLIPS = {
    "h264.mp4": ("libx264", ["aac"]),
    "h265.mp4": ("libx265", []),
    "mpeg4.mov": ("mpeg4", ["aac"]),
    "prores.mov": ("prores", []),
    "h264.mkv": ("libx264", ["flac"]),
    "ffv1.mkv": ("ffv1", []),
    "vp8.webm": ("libvpx", ["libopus"]),
    "vp9.webm": ("libvpx-vp9", []),
    "av1.mp4": ("libsvtav1", []),
    "mpeg4.avi": ("mpeg4", ["mp3"]),
    "mjpeg.avi": ("mjpeg", []),
    "mpeg2.ts": ("mpeg2video", ["mp2"]),
    "mpeg2.mpg": ("mpeg2video", ["mp2"]),
    "flv.flv": ("flv", []),
    "wmv.asf": ("wmv2", []),
    "gif.gif": ("gif", []),
}
PIXELS = {"prores": "yuv422p10le", "mjpeg": "yuvj420p", "gif": "rgb8"}
PICTURES = (".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif")

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
HEAD_BYTES = 2048
"""Most of a file's structure is in its first and last bytes: half of all changes are made there."""


def good_videos(folder: Path, kinds: Sequence[str]) -> dict[str, bytes]:
    """Make a clip of each of these kinds; the face of the astronaut moves in it."""
    pictures = [picture[..., ::-1] for picture in astronaut_frames(FRAMES, SIZE)]
    made = {}
    for name in kinds:
        codec, sounds = CLIPS[name]
        made[name] = make_clip(
            folder / name,
            FRAMES,
            size=SIZE,
            codec=codec,
            pix_fmt=PIXELS.get(codec, "yuv420p"),
            sounds=sounds,
            draw=lambda i, *_: pictures[i],
        ).read_bytes()
    return made


def good_pictures() -> dict[str, bytes]:
    """Make a small picture of each kind."""
    picture = cv2.resize(cv2.imread(str(FACE)), (96, 112))
    rgb = np.asarray(picture[..., ::-1], np.uint8)
    photographs = {f"face.{kind.lower()}": photograph(rgb, kind, 6) for kind in ("HEIF", "AVIF")}
    return {f"face{suffix}": cv2.imencode(suffix, picture)[1].tobytes() for suffix in PICTURES} | photographs


def place(data: Sequence[int], dice: random.Random) -> int:
    """Choose a place to change."""
    near = min(HEAD_BYTES, len(data))
    return dice.choice(
        (
            dice.randrange(len(data)),
            dice.randrange(len(data)),
            dice.randrange(near),
            len(data) - 1 - dice.randrange(near),
        )
    )


def flip(data: bytearray, dice: random.Random, _other: bytes) -> None:
    for _ in range(dice.choice((1, 1, 4, 64))):
        data[place(data, dice)] ^= 1 << dice.randrange(8)


def overwrite(data: bytearray, dice: random.Random, _other: bytes) -> None:
    start = place(data, dice)
    data[start : start + dice.choice((1, 4, 100))] = dice.randbytes(dice.choice((1, 4, 100)))


def number(data: bytearray, dice: random.Random, _other: bytes) -> None:
    """Put an extreme number somewhere."""
    width = dice.choice((1, 2, 4, 8))
    start = place(data, dice)
    value = dice.choice(EXTREMES) % (1 << 8 * width)
    data[start : start + width] = value.to_bytes(width, dice.choice(("big", "little")))


def cut(data: bytearray, dice: random.Random, _other: bytes) -> None:
    del data[max(1, place(data, dice)) :]


def remove(data: bytearray, dice: random.Random, _other: bytes) -> None:
    start = place(data, dice)
    del data[start : start + dice.choice((1, 7, 1000))]
    data[:0] = b"" if data else b"\0"


def repeat(data: bytearray, dice: random.Random, _other: bytes) -> None:
    start = place(data, dice)
    piece = bytes(data[start : start + dice.choice((1, 16, 4096))])
    data[start:start] = piece * dice.choice((1, 3, 50))


def clear(data: bytearray, dice: random.Random, _other: bytes) -> None:
    start = place(data, dice)
    end = min(len(data), start + dice.choice((8, 512, 8192)))
    data[start:end] = bytes(end - start)


def splice(data: bytearray, dice: random.Random, other: bytes) -> None:
    """Let another file go on from somewhere."""
    data[place(data, dice) :] = other[dice.randrange(len(other)) :]


MUTATIONS: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (
    flip,
    overwrite,
    number,
    number,
    cut,
    remove,
    repeat,
    clear,
    splice,
)


def mutate(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Return a file that differs from a good one in one to four ways."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        dice.choice(MUTATIONS)(changed, dice, dice.choice(others))
        if not changed:
            changed += b"\0"
    return bytes(changed)


@dataclass(frozen=True)
class Case:
    """A request: its name tells the seed, so that it can be made again."""

    name: str
    video: bytes
    image: bytes


def mutated(seed: int, numbers: Iterable[int], videos: dict[str, bytes], pictures: dict[str, bytes]) -> Iterator[Case]:
    """Make the requests of these numbers: in each the video is damaged, or, one in five, the picture."""
    for number_ in numbers:
        dice = random.Random(f"{seed}/{number_}")
        video, picture = dice.choice(list(videos)), dice.choice(list(pictures))
        name = f"{seed}/{number_} {video} {picture}"
        if dice.random() < 0.2:
            image = mutate(pictures[picture], dice, list(pictures.values()))
            yield Case(f"{name} (picture)", videos[video], image)
        else:
            yield Case(name, mutate(videos[video], dice, list(videos.values())), pictures[picture])


DESCRIPTIONS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{file}\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "hls key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:9,\n{file}\n#EXT-X-ENDLIST\n',
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n#EXT-X-STREAM-INF:BANDWIDTH=2\n{file}\n",
    "hls concat": "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:9,\nconcat:{url}|{file}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{file}'\nfile '{url}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1"><BaseURL>{url}</BaseURL><SegmentList><SegmentURL media="{file}"/></SegmentList>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "rtsp text": "RTSPtextRTSP://127.0.0.1:{port}/x\r",
    "quicktime text": 'RTSPtext\n<?quicktime type="application/x-quicktime-media-link"?><embed src="{url}"/>',
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry><entry><ref href="{file}"/></entry></asx>',
    "asf reference": "[Reference]\nRef1={url}\nRef2={file}\n",
    "pls": "[playlist]\nFile1={file}\nFile2={url}\nNumberOfEntries=2\n",
    "smil": '<smil><body><seq><video src="{url}"/><video src="{file}"/></seq></body></smil>',
    "xspf": '<playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>{url}</location></track></trackList></playlist>',
    "avisynth": 'AviSource("{path}")',
    "vapoursynth": "import urllib.request\nurllib.request.urlopen('{url}')\nopen('{path}').read()\n",
    "metadata": ";FFMETADATA1\ntitle=x\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=1\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\n<img src='{url}'>\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
    "xxe": '<?xml version="1.0"?><!DOCTYPE MPD [<!ENTITY x SYSTEM "{file}">]><MPD>&x;</MPD>',
    "image sequence": "{path}%03d.png",
    "imf": '<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>{url}</Id></CompositionPlaylist>',
    "lavfi": "movie={path}[out0]",
    "mvg": "push graphic-context\nimage over 0,0 0,0 '{url}'\npop graphic-context\n",
}
"""Files that name others, {file} and {url}, and that a too friendly demuxer or decoder would open."""


def dressed(path: Path, url: str, good: bytes, picture: bytes, *, as_pictures: bool) -> Iterator[Case]:
    """Make requests of which the video, or also the picture, names a file and an address; `good` is an mp4."""
    names = {"file": path.as_uri(), "path": str(path), "url": url, "port": url.rpartition(":")[2].partition("/")[0]}
    for name, text in DESCRIPTIONS.items():
        data = text.format(**names).encode()
        yield Case(f"{name} as a video", data, picture)
        if as_pictures:
            yield Case(f"{name} as a picture", good, data)
    for name in (names["file"], url):
        yield Case(f"an mp4 whose samples lie at {name}", elsewhere(good, name), picture)


def elsewhere(mp4: bytes, name: str) -> bytes:
    """Let the data reference of an mp4 (ISO 14496-12, 8.7.2) say that the samples lie at another place."""
    own = b"\0\0\0\x0curl \0\0\0\x01"
    assert own in mp4
    at = mp4.index(own)
    target = name.encode() + b"\0"
    entry = (12 + len(target)).to_bytes(4, "big") + b"url \0\0\0\0" + target
    grown = len(entry) - len(own)
    changed = bytearray(mp4[:at] + entry + mp4[at + len(own) :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place_ = changed.rindex(box, 0, at) - 4
        size = int.from_bytes(changed[place_ : place_ + 4], "big")
        changed[place_ : place_ + 4] = (size + grown).to_bytes(4, "big")
    return bytes(changed)
