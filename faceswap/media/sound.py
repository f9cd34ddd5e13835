"""Sound, packet by packet: the amount that a file really holds, and AAC for codecs that an mp4 cannot hold.

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
from av.container import OutputContainer

from .timeline import open_media, packets

AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
AAC_FRAME = 1024
LEAST_GAP_S = 0.01


@dataclass(slots=True)
class DecodedTrack:
    """The facts of a sound track that was decoded.

    packets     how many the file has
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

    def add(self, frame: AudioFrame) -> None:
        """Count the samples of a decoded frame."""
        length_s = frame.samples / frame.sample_rate
        time_s = self.end if frame.time is None else frame.time
        self.seconds += length_s
        self.frame_s = max(self.frame_s, length_s)
        self.start = time_s if self.start is None else self.start
        self.end = (time_s or 0.0) + length_s


def decode_tracks(path: Path) -> dict[int, DecodedTrack]:
    """Decode all sound of the file at `path` and return the facts of each track, by the index of its stream."""
    with open_media(path) as container:
        decoded_tracks = {stream.index: DecodedTrack() for stream in container.streams.audio}
        for packet in packets(container, "audio"):
            decoded_tracks[packet.stream_index].packets += 1
            _decode(packet.stream, packet, decoded_tracks[packet.stream_index])
        for stream in container.streams.audio:
            if decoded_tracks[stream.index].packets:
                _decode(stream, None, decoded_tracks[stream.index])
    return decoded_tracks


def _decode(stream: AudioStream, packet: av.Packet[AudioStream] | None, track: DecodedTrack) -> None:
    if stream.codec_context is None:
        track.damaged += 1
        return
    try:
        for frame in stream.decode(packet):
            track.add(frame)
    except av.FFmpegError:
        track.damaged += packet is not None


def add_aac_track(source: AudioStream, output: OutputContainer) -> AudioStream:
    """Add a track to `output` for what `source` decodes to."""
    context = source.codec_context
    rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
    return output.add_stream("aac", rate=rate, layout=AAC_LAYOUTS.get(context.channels, "stereo"))


class AacEncoder:
    """An encoder of decoded frames to AAC packets that keep the time of their samples, across gaps of the source."""

    def __init__(self, source: AudioStream, track: AudioStream) -> None:
        """Encode what `source` decodes to for `track`, which `add_aac_track` made."""
        self._source = source
        self._track = track
        context = track.codec_context
        self._rate = context.sample_rate
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
                silence = -self._given % AAC_FRAME  # packets are shifted whole
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
