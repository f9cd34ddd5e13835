"""The metadata tag of a result: an XMP packet that says what it is. It runs in a worker process.

The XMP Specification (Part 3, 1.1) tells where it stands: in MP4 as a `uuid` box, which moves nothing else at the end
of a file; in GIF as an application extension; in PNG, JPEG and WebP, which Pillow writes and reads, as a chunk or
segment. For Matroska and WebM, which it does not tell of, the packet is the text of a tag named XMP.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from .. import __version__
from .facts import Tag
from .timeline import open_media

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's word for a recording that a trained model has changed."""
SOFTWARE = f"faceswap {__version__}"

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = "http://ns.adobe.com/xap/1.0/"
DUBLIN_CORE = "http://purl.org/dc/elements/1.1/"
IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"

BOX_ID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
MAX_PACKET_BYTES = 1 << 20
MAX_BOXES = 10_000


EBML_MAGIC = b"\x1a\x45\xdf\xa3"
MATROSKA_TAG = "XMP"
GIF_MARK = b"\x21\xff\x0bXMP DataXMP"
GIF_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
"""Ends an XMP packet in a GIF: a reader that takes its bytes for lengths of blocks comes to the end, wherever it is."""
GIF_END = b";"
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")


def write_tag(path: Path, prompt_id: str) -> None:
    """Append the tag of a job's result to an mp4."""
    packet = tag_packet(prompt_id).encode()
    with path.open("ab") as file:
        file.write((8 + len(BOX_ID) + len(packet)).to_bytes(4) + b"uuid" + BOX_ID + packet)


def write_gif_tag(path: Path, prompt_id: str) -> None:
    """Put the tag of a job's result into a GIF, before the byte that ends it."""
    with path.open("r+b") as file:
        file.seek(-len(GIF_END), os.SEEK_END)
        file.write(GIF_MARK + tag_packet(prompt_id).encode() + GIF_TRAILER + GIF_END)


def read_tag(path: Path) -> Tag | None:
    """Return what the XMP of a video or picture says, None where it says nothing of how the file was made."""
    for packet in chain(_packets_of_mp4(path), _packets_of_gif(path), _packets_of_matroska(path), _of_picture(path)):
        try:
            text = packet.decode()
            if "<!DOCTYPE" in text:
                continue  # XMP has none, and what it declares could grow without bound
            root = ElementTree.fromstring(text)
        except (UnicodeDecodeError, ElementTree.ParseError):
            continue
        source_type = _find(root, IPTC_EXTENSION, "DigitalSourceType")
        if source_type:
            return Tag(source_type, _find(root, XMP, "CreatorTool"), _find(root, DUBLIN_CORE, "identifier"))
    return None


def tag_packet(prompt_id: str) -> str:
    """Return the XMP packet of a job's result."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about="" xmlns:xmp="{XMP}" xmlns:dc="{DUBLIN_CORE}" xmlns:Iptc4xmpExt="{IPTC_EXTENSION}"'
        f" xmp:CreatorTool={quoteattr(SOFTWARE)} dc:identifier={quoteattr(prompt_id)}"
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(SOURCE_TYPE)}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def _find(root: ElementTree.Element, namespace: str, name: str) -> str | None:
    """Return a property, which XMP writes as an attribute or as an element."""
    key = f"{{{namespace}}}{name}"
    for element in root.iter():
        if key in element.attrib:
            return element.attrib[key]
        if element.tag == key:
            return (element.text or "").strip() or element.get(f"{{{RDF}}}resource")
    return None


def _packets_of_mp4(path: Path) -> Iterator[bytes]:
    """Yield the XMP packets in the boxes of a file; none, where it is no mp4."""
    end = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        for _ in range(MAX_BOXES):
            file.seek(position)
            header = file.read(16)
            size, start = int.from_bytes(header[:4]), position + 8
            if size == 1:
                size, start = int.from_bytes(header[8:]), position + 16
            if len(header) < 16 or size < 8 or position + size > end:
                return
            length = position + size - start - len(BOX_ID)
            if header[4:8] == b"uuid" and 0 < length <= MAX_PACKET_BYTES:
                file.seek(start)
                if file.read(len(BOX_ID)) == BOX_ID:
                    yield file.read(length)
            position += size


def _packets_of_gif(path: Path) -> Iterator[bytes]:
    """Yield the XMP packet at the end of a GIF."""
    with path.open("rb") as file:
        if file.read(4) != b"GIF8":
            return
        file.seek(max(file.seek(0, os.SEEK_END) - MAX_PACKET_BYTES, 0))
        _, mark, rest = file.read().rpartition(GIF_MARK)
    if mark and (end := rest.rfind(GIF_TRAILER)) >= 0:
        yield rest[:end]


def _packets_of_matroska(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.read(4) != EBML_MAGIC:
            return
    with open_media(path) as container:
        if packet := container.metadata.get(MATROSKA_TAG):
            yield packet.encode()


def _of_picture(path: Path) -> Iterator[bytes]:
    """Yield the XMP packet of a still picture."""
    from PIL import Image  # here, because only pictures need it

    with suppress(OSError, SyntaxError, ValueError), Image.open(path, formats=PILLOW_FORMATS) as image:
        packet = image.info.get("xmp")
        if isinstance(packet, bytes):
            yield packet
