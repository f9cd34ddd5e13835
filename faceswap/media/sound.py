"""Sound, packet by packet: the amount that a file really holds, and encoding where a file cannot hold its codec.

Runs in a worker process; memory does not grow with the length of the sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from .timeline import open_media, packets

AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
PACKET_SAMPLES = {"aac": 1024, "libopus": 960}
LEAST_GAP_S = 0.01
LEAD_S = Fraction(8, 100)
"""Sound that a decoder has to hear before it gives what is meant: the most that a format asks for (RFC 7845, 4.6)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a file's sound, from `start` to `end` in seconds of its own clock; None where it is open."""

    start: Fraction | None = None
    end: Fraction | None = None

    def packets(self, container: InputContainer) -> Iterator[av.Packet[AudioStream]]:
        """Yield the packets of sound that the span is decoded from, in file order."""
        return (packet for packet in packets(container, "audio") if self.holds(packet, LEAD_S))

    def holds(self, packet: av.Packet[AudioStream], lead: Fraction = Fraction(0)) -> bool:
        """Return true if a packet begins in the span, or so many seconds before it."""
        if self.start is None and self.end is None:
            return True
        ticks = packet.dts if packet.pts is None else packet.pts
        if ticks is None:
            return False
        time = ticks * packet.time_base
        return (self.start is None or time >= self.start - lead) and (self.end is None or time < self.end)

    def bound(self, start: float, end: float) -> tuple[float, float]:
        """Return the part of a time that lies in the span, which is none where it ends before it begins."""
        low = start if self.start is None else max(start, float(self.start))
        return low, end if self.end is None else min(end, float(self.end))


WHOLE = Span()


@dataclass(slots=True)
class DecodedTrack:
    """The facts of a sound track that was decoded.

    packets     how many begin in the span
    damaged     how many of them did not decode
    seconds     of sound that came out
    start, end  when the first of it begins and the last ends, in seconds of the file's clock; None without any
    frame_s     seconds of the longest decoded frame
    """

    packets: int = 0
    damaged: int = 0
    seconds: float = 0.0
    start: float | None = None
    end: float | None = None
    frame_s: float = 0.0

    def add(self, frame: AudioFrame, span: Span) -> None:
        """Count the samples of a decoded frame that lie in a span."""
        length_s = frame.samples / frame.sample_rate
        time_s = (self.end or 0.0) if frame.time is None else frame.time
        start_s, end_s = span.bound(time_s, time_s + length_s)
        if start_s >= end_s:
            return
        self.seconds += end_s - start_s
        self.frame_s = max(self.frame_s, length_s)
        self.start = start_s if self.start is None else self.start
        self.end = end_s


def decode_tracks(path: Path, span: Span = WHOLE) -> dict[int, DecodedTrack]:
    """Decode the sound of a file within a span and return the facts of each track, by the index of its stream."""
    with open_media(path) as container:
        decoded_tracks = {stream.index: DecodedTrack() for stream in container.streams.audio}
        for packet in span.packets(container):
            decoded_tracks[packet.stream_index].packets += span.holds(packet)
            _decode(packet.stream, packet, decoded_tracks[packet.stream_index], span)
        for stream in container.streams.audio:
            if decoded_tracks[stream.index].packets:
                _decode(stream, None, decoded_tracks[stream.index], span)
    return decoded_tracks


def _decode(stream: AudioStream, packet: av.Packet[AudioStream] | None, track: DecodedTrack, span: Span) -> None:
    if stream.codec_context is None:
        track.damaged += 1
        return
    try:
        for frame in stream.decode(packet):
            track.add(frame, span)
    except av.FFmpegError:
        track.damaged += packet is not None


def add_aac_track(source: AudioStream, output: OutputContainer) -> AudioStream:
    """Add a track to `output` for what `source` decodes to."""
    context = source.codec_context
    rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
    return output.add_stream("aac", rate=rate, layout=AAC_LAYOUTS.get(context.channels, "stereo"))


class SoundEncoder:
    """An encoder of decoded frames to packets that keep the time of their samples, across gaps of the source."""

    def __init__(self, source: AudioStream, track: AudioStream) -> None:
        """Encode what `source` decodes to for `track`, of AAC or Opus."""
        self._source = source
        self._track = track
        context = track.codec_context
        self._rate = context.sample_rate
        self._packet_samples = PACKET_SAMPLES[context.name]
        self._resampler = av.AudioResampler(context.format.name, context.layout.name, self._rate)
        self._given = 0
        # From which sample on, as the encoder counts, how many samples packets are to be shown later than it says.
        self._shifts: deque[tuple[int, int]] = deque()
        self._shift: int | None = None

    def encode(self, packet: av.Packet[AudioStream] | None, origin: Fraction) -> Iterator[av.Packet[AudioStream]]:
        """Encode a packet of the source (None: its end), its times counted from `origin` in seconds.

        A packet that does not decode leaves a gap.
        """
        try:
            frames = self._source.decode(packet)
        except av.FFmpegError:
            frames = []
        for frame in frames:
            for part in self._resampler.resample(frame):
                yield from self._encode(part, origin)
        if packet is None:
            for part in self._resampler.resample(None):
                yield from self._encode(part, origin)
            yield from self._shown(self._track.encode(None))

    def _encode(self, frame: AudioFrame, origin: Fraction) -> Iterator[av.Packet[AudioStream]]:
        if frame.pts is not None:
            gap = (
                round((frame.pts * (frame.time_base or Fraction(1)) - origin) * self._rate)
                - self._given
                - self._last_shift
            )
            if self._shift is None:
                self._shift = gap
            elif gap > LEAST_GAP_S * self._rate:
                silence = -self._given % self._packet_samples  # packets are shifted whole
                if silence:
                    yield from self._give(_silence(frame, silence))
                self._shifts.append((self._given, self._last_shift + gap - silence))
        yield from self._give(frame)

    @property
    def _last_shift(self) -> int:
        return self._shifts[-1][1] if self._shifts else self._shift or 0

    def _give(self, frame: AudioFrame) -> Iterator[av.Packet[AudioStream]]:
        frame.pts, frame.time_base = self._given, Fraction(1, self._rate)
        self._given += frame.samples
        yield from self._shown(self._track.encode(frame))

    def _shown(self, encoded: list[av.Packet[AudioStream]]) -> Iterator[av.Packet[AudioStream]]:
        for packet in encoded:
            assert packet.pts is not None
            while self._shifts and packet.pts >= self._shifts[0][0]:
                self._shift = self._shifts.popleft()[1]
            packet.pts += self._shift or 0
            packet.dts = packet.pts
            yield packet


def _silence(like: AudioFrame, samples: int) -> AudioFrame:
    frame = AudioFrame(like.format.name, like.layout.name, samples)
    frame.sample_rate = like.sample_rate
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return frame
