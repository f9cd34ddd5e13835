"""The metadata tag of a result: an XMP packet that says what it is. It runs in a worker process.

XMP stands in MP4 as a `uuid` box (XMP Specification Part 3, 1.1.6). At the end of a file it moves nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from .. import __version__
from .facts import Tag

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


def write_tag(path: Path, prompt_id: str) -> None:
    """Append the tag of a job's result to an mp4."""
    packet = _packet(prompt_id).encode()
    with path.open("ab") as file:
        file.write((8 + len(BOX_ID) + len(packet)).to_bytes(4) + b"uuid" + BOX_ID + packet)


def read_tag(path: Path) -> Tag | None:
    """Return what the XMP of an mp4 says, None where it says nothing of how the file was made."""
    for packet in _packets(path):
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


def _packet(prompt_id: str) -> str:
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


def _packets(path: Path) -> Iterator[bytes]:
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
