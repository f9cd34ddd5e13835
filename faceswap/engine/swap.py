"""The swap: the source's face, lit like the target's, drawn over every frame of a clip.

Each frame is handled in two calls that may run in two threads: `FaceSwapper.track` finds the faces, `FaceSwapper.apply`
paints them. Nothing is shared between the two but the tracks handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .landmarks import Face, Track, Tracker, find_faces
from .mesh import Image
from .painter import FacePainter
from .people import Look, People
from .source import NoFaceError, SourceFace

__all__ = ["Face", "FaceSwapper", "NoFaceError", "SourceFace", "Track", "find_faces"]

_MAX_FACES = 16


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
    """

    def __init__(
        self,
        sources: Sequence[SourceFace],
        target_indices: Sequence[int] = (0,),
        frame_rate: float = 25.0,
        strength: float = 1.0,
        known: Sequence[Look] = (),
    ) -> None:
        if not sources:
            raise ValueError("A swap needs at least one source face")
        self._sources = list(sources)
        self._strength = strength
        self._indices = list(target_indices)
        self._people = People(known) if known or len(self._indices) > 1 else None
        # One more than is replaced, where people are told apart: a stranger is not to be taken for who is missing.
        followed = max(self._indices, default=-1) + (1 if self._people is None else 2)
        self._tracker = Tracker(min(followed, _MAX_FACES), frame_rate, is_later_part=bool(known))
        self._targets = _Targets(target_indices, timeouts=round(frame_rate / 2))
        self._first_tracks: dict[int, int] = {}
        self._painters: dict[int, FacePainter] = {}

    def track(self, bgr: Image) -> list[Track]:
        """Find the faces to replace in the next frame, uint8 (H, W, 3) BGR."""
        tracks = self._tracker(bgr)
        if self._people is None:
            return self._targets.choose(tracks)
        named = zip(self._people.name(bgr, tracks), tracks, strict=True)
        return [self._as_person(track, person) for person, track in named if person in self._indices]

    def _as_person(self, track: Track, person: int) -> Track:
        """Return the track of a known person; who comes back is handed over at once."""
        returned = self._first_tracks.setdefault(person, track.identity) != track.identity
        presence = 1.0 if returned else track.presence
        return replace(track, identity=person, presence=presence, target=self._indices.index(person))

    def apply(self, bgr: Image, tracks: Sequence[Track]) -> int:
        """Replace the tracked faces of the next frame in place; return how many changed."""
        changed = 0
        for track in tracks:
            if track.identity not in self._painters:
                source = self._sources[min(track.target, len(self._sources) - 1)]
                self._painters[track.identity] = FacePainter(source, self._strength)
            changed += self._painters[track.identity].paint(bgr, track)
        if len(self._painters) > 2 * _MAX_FACES:
            current = {track.identity for track in tracks}
            self._painters = {key: painter for key, painter in self._painters.items() if key in current}
        return changed


class _Targets:
    """The choice of the tracked faces to replace.

    A place whose face is lost goes to a face that has just come into view, or after `timeouts` frames to any.
    """

    def __init__(self, indices: Sequence[int], timeouts: int) -> None:
        self._indices = indices
        self._timeouts = timeouts
        self._holders: dict[int, int] = {}
        self._missing: dict[int, int] = {}
        self._known: set[int] = set()

    def choose(self, tracks: list[Track]) -> list[Track]:
        """Return the tracks to replace, each with its `target`."""
        by_identity = {track.identity: track for track in tracks}
        ranked = sorted(by_identity, key=lambda identity: by_identity[identity].area, reverse=True)
        for target, index in enumerate(self._indices):
            if self._holders.get(target) in by_identity:
                self._missing[target] = 0
                continue
            self._missing[target] = self._missing.get(target, 0) + 1
            if 0 <= index < len(ranked) and self._may_take(ranked[index], target):
                self._holders[target] = ranked[index]
        self._known |= by_identity.keys()
        return [
            replace(by_identity[identity], target=target)
            for target, identity in self._holders.items()
            if identity in by_identity
        ]

    def _may_take(self, identity: int, target: int) -> bool:
        if identity in self._holders.values():
            return False
        is_new = identity not in self._known
        return target not in self._holders or is_new or self._missing[target] > self._timeouts
