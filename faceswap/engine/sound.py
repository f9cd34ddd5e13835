"""Sound in the engine: the packets of the source, copied wherever an MP4 file can hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from .clip import open_media

COPIED = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac"})
"""Codecs that an MP4 file can hold and players know; others become AAC."""

AAC_RATE = 48_000
AAC_BIT_RATE = 192_000


@dataclass(frozen=True)
class Sound:
    """The first sound track of a file from `start` to `end` (seconds after `origin`; None = all there is)."""

    path: Path
    origin: Fraction
    """Time of the video's first frame, in seconds of the file."""
    start: Fraction | None = None
    end: Fraction | None = None

    def __str__(self) -> str:
        return f"<sound of {self.path.name}>"


class SoundTrack:
    """A sound being written into an MP4 file. Open the track before the first packet is muxed."""

    def __init__(self, sound: Sound, output: av.container.OutputContainer) -> None:
        self._sound = sound
        self._input = open_media(sound.path)
        self._source = self._input.streams.audio[0]
        self._copied = self._source.codec_context.codec.canonical_name in COPIED
        if self._copied:
            self._stream = output.add_stream_from_template(self._source)
        else:
            layout = "mono" if self._source.channels == 1 else "stereo"
            self._stream = output.add_stream("aac", rate=AAC_RATE, layout=layout, bit_rate=AAC_BIT_RATE)

    def packets(self) -> Iterator[tuple[Fraction, av.Packet[Any]]]:
        """Yield the packets to mux, each with its time in seconds, and close the source at the end."""
        with self._input:
            for packet in self._copies() if self._copied else self._encoded():
                packet.stream = self._stream
                base = packet.time_base or Fraction(1)
                yield (packet.dts or 0) * base, packet

    def _copies(self) -> Iterator[av.Packet[Any]]:
        base = self._source.time_base or Fraction(1)
        shift = round((self._sound.origin + (self._sound.start or 0)) / base)
        for packet in self._input.demux(self._source):
            if packet.pts is None or packet.dts is None:
                continue
            at = packet.pts * base - self._sound.origin
            if self._sound.end is not None and at >= self._sound.end:
                return
            if self._sound.start is None or at >= self._sound.start:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                yield packet

    def _encoded(self) -> Iterator[av.Packet[Any]]:
        shift = self._sound.origin + (self._sound.start or 0)
        for frame in self._input.decode(self._source):
            base = frame.time_base or Fraction(1)
            at = (frame.pts or 0) * base - self._sound.origin
            if self._sound.end is not None and at >= self._sound.end:
                break
            if self._sound.start is None or at >= self._sound.start:
                frame.pts = (frame.pts or 0) - round(shift / base)
                yield from self._stream.encode(frame)
        yield from self._stream.encode(None)
