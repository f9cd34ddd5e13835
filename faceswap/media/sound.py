"""Decodes sound, a packet at a time, to know how much of it there really is. Runs in a worker process."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from faceswap.media.timeline import open_media, packets


@dataclass(slots=True)
class Heard:
    """What decoding a sound track gave.

    packets  how many the file has
    damaged  how many of them did not decode
    seconds  of sound that came out
    start    the time of the first of it, in seconds of the file's clock; None when nothing came out
    """

    packets: int = 0
    damaged: int = 0
    seconds: float = 0.0
    start: float | None = None

    def add(self, frame: AudioFrame) -> None:
        """Count the samples of a decoded frame."""
        self.seconds += frame.samples / frame.sample_rate
        if self.start is None:
            self.start = frame.time


def listen(path: Path) -> dict[int, Heard]:
    """Decode all sound of the file at `path`: what was heard of each track, by the index of its stream."""
    with open_media(path) as container:
        heard = {stream.index: Heard() for stream in container.streams.audio}
        for packet in packets(container, "audio"):
            track = heard[packet.stream_index]
            track.packets += 1
            if packet.stream.codec_context is not None:
                _decode(packet.stream, packet, track)
        for stream in container.streams.audio:
            if stream.codec_context is not None and heard[stream.index].packets:
                _decode(stream, None, heard[stream.index])
    return heard


def _decode(stream: AudioStream, packet: av.Packet[AudioStream] | None, track: Heard) -> None:
    try:
        for frame in stream.decode(packet):
            track.add(frame)
    except av.FFmpegError:
        track.damaged += packet is not None
