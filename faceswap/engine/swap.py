"""The swap: the source's face, lit like the target's, drawn over every frame of a clip.

Each frame is handled in two calls that may run in two threads: `FaceSwapper.track` finds the faces, `FaceSwapper.apply`
paints them. Nothing is shared between the two but the tracks handed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from . import mesh
from .fades import Fades
from .hand_tracking import HandTracker
from .landmarks import Face, find_faces
from .painter import FacePainter
from .people import Look, People
from .pixels import Image, Pixels, within
from .source import NoFaceError, SourceFace
from .tracking import LOOKAHEAD, Track, Tracker

__all__ = [
    "LOOKAHEAD",
    "Face",
    "FaceSwapper",
    "NoFaceError",
    "Painter",
    "Source",
    "SourceFace",
    "Track",
    "find_faces",
    "painter_of",
]

_MAX_FACES = 16


class Painter(Protocol):
    """A painter of one source onto one tracked face, frame after frame."""

    @property
    def reach(self) -> float:
        """Size of the part of a frame that is painted on, in multiples of the face's box."""

    def paint(self, frame: Image, track: Track) -> bool:
        """Paint the face of one frame in place; return False, and leave the frame alone, where it cannot be done."""


class PaintedSource(Protocol):
    """A face to put in that brings painters of its own."""

    def painter(self, strength: float) -> Painter:
        """Return a painter of one tracked face; `strength` is its opacity, 0–1."""


Source = SourceFace | PaintedSource


def painter_of(source: Source, strength: float) -> Painter:
    """Return a painter of a source onto one tracked face; `strength` is its opacity, 0–1."""
    return FacePainter(source, strength) if isinstance(source, SourceFace) else source.painter(strength)


class FaceSwapper:
    """A swapper of the faces in the frames of one clip.

    sources          faces to put in
    target_indices   which faces of a frame are replaced: 0 is the largest when faces come into view (ReActor's
                     input_faces_index). The k-th gets the k-th source, or the last. A face keeps its source for as
                     long as it is followed, also when another becomes larger; where several are replaced, each keeps
                     it for the whole clip, by its looks.
    frame_rate       frames a second
    strength         0–1, opacity
    known            the looks of people who came into view before this clip, or part of one, begins
    lookahead        frames after a frame that are tracked before it is painted, LOOKAHEAD or none: with them faces
                     fade in and out, and landmarks of frames in which little moves are interpolated
    """

    def __init__(
        self,
        sources: Sequence[Source],
        target_indices: Sequence[int] = (0,),
        frame_rate: float = 25.0,
        strength: float = 1.0,
        known: Sequence[Look] = (),
        lookahead: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("A swap needs at least one source face")
        self._sources = list(sources)
        self._strength = strength
        self.lookahead = lookahead
        self._indices = list(target_indices)
        self._people = People(known) if known or len(self._indices) > 1 else None
        # One more than is replaced, where people are told apart: a stranger is not to be taken for who is missing.
        followed = max(self._indices, default=-1) + (1 if self._people is None else 2)
        self._tracker = Tracker(min(followed, _MAX_FACES), frame_rate, lookahead=lookahead, is_later_part=bool(known))
        # A face that comes back half hidden is recognised sooner than another gets its place.
        self._targets = _Targets(target_indices, timeouts=max(LOOKAHEAD + 1, round(frame_rate / 2)))
        # One less: a frame may be final only with the next one.
        held_back = max(0, lookahead - 1)
        self._fades = Fades(self._tracker.trace_back, held_back)
        self._hands = HandTracker(held_back)
        self._awaited: deque[list[Track]] = deque()
        self._painters: dict[int, Painter] = {}

    def track(self, frame: Pixels) -> list[Track]:
        """Find the faces to replace in the next frame.

        The list is final when `lookahead` more frames have been tracked, or after `finish`: until then it may be
        empty, and change. The frames must stay as they are for as long.
        """
        tracks: list[Track] = []
        self._awaited.append(tracks)
        for picture, found in self._tracker.follow(frame):
            self._finish_frame(picture, found)
        return tracks

    def finish(self) -> None:
        """Make the tracks of all frames final: none follow."""
        for picture, found in self._tracker.finish():
            self._finish_frame(picture, found)

    def _finish_frame(self, frame: Pixels, found: list[Track]) -> None:
        tracks = self._awaited.popleft()
        tracks += self._chosen(frame, found)
        self._fades.add(tracks, begins_shot=self._tracker.begins_shot)
        self._hands.add(frame, tracks, begins_shot=self._tracker.begins_shot)

    def _chosen(self, frame: Pixels, tracks: list[Track]) -> list[Track]:
        if self._people is None:
            return self._targets.choose(tracks, begins_shot=self._tracker.begins_shot)
        named = zip(self._people.name(frame, tracks), tracks, strict=True)
        return [
            replace(track, identity=person, target=self._indices.index(person))
            for person, track in named
            if person in self._indices
        ]

    def apply(self, frame: Pixels, tracks: Sequence[Track]) -> int:
        """Replace the tracked faces of the next frame in place; return how many changed."""
        changed = 0
        for track in tracks:
            if track.identity not in self._painters:
                source = self._sources[min(track.target, len(self._sources) - 1)]
                self._painters[track.identity] = painter_of(source, self._strength)
            painter = self._painters[track.identity]
            area = within(frame, *mesh.extent(track.landmarks, painter.reach))
            if area is not None:
                with frame.painted(area) as bgr:
                    changed += painter.paint(bgr, track.seen_from(*area[:2]))
        if len(self._painters) > 2 * _MAX_FACES:
            current = {track.identity for track in tracks}
            self._painters = {key: painter for key, painter in self._painters.items() if key in current}
        return changed


class _Targets:
    """The choice of the tracked faces to replace.

    A place whose face is lost goes to another after `timeouts` frames, or where another shot begins.
    """

    def __init__(self, indices: Sequence[int], timeouts: int) -> None:
        self._indices = indices
        self._timeouts = timeouts
        self._holders: dict[int, int] = {}
        self._missing: dict[int, int] = {}

    def choose(self, tracks: list[Track], *, begins_shot: bool) -> list[Track]:
        """Return the tracks to replace, each with its `target`."""
        by_identity = {track.identity: track for track in tracks}
        ranked = sorted(by_identity, key=lambda identity: by_identity[identity].area, reverse=True)
        if begins_shot:
            self._holders = {target: face for target, face in self._holders.items() if face in by_identity}
        for target, index in enumerate(self._indices):
            if self._holders.get(target) in by_identity:
                self._missing[target] = 0
                continue
            self._missing[target] = self._missing.get(target, 0) + 1
            if 0 <= index < len(ranked) and self._may_take(ranked[index], target):
                self._holders[target] = ranked[index]
        return [
            replace(by_identity[identity], target=target)
            for target, identity in self._holders.items()
            if identity in by_identity
        ]

    def _may_take(self, identity: int, target: int) -> bool:
        is_free = target not in self._holders or self._missing[target] > self._timeouts
        return is_free and identity not in self._holders.values()
