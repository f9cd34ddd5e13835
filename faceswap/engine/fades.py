"""Fades of a swap, over frames that are held back: in before a face is found, out before it is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from .tracking import LOOKAHEAD, Track

FADE = LOOKAHEAD
"""Frames over which a face that comes into view, or is lost, is handed over."""


class Fades:
    """The presence of the tracks of a clip's frames.

    `trace_back(track, frames)` returns earlier tracks of a face, newest first, and whether a shot begins with them.
    """

    def __init__(self, trace_back: Callable[[Track, int], tuple[list[Track], bool]]) -> None:
        self._trace_back = trace_back
        self._held: deque[list[Track]] = deque(maxlen=LOOKAHEAD)
        self._shown: dict[int, int] = {}
        """For each face that was shown in this shot the frames since it came into view, up to FADE + 1."""

    def add(self, tracks: list[Track], *, begins_shot: bool) -> None:
        """Take the tracks of the next frame; those of the LOOKAHEAD frames before may change, and get tracks put in."""
        if begins_shot:
            self._held.clear()
            self._shown = {track.identity: FADE for track in tracks}
        before = {track.identity for track in self._held[-1]} if self._held else set()
        for identity in before - {track.identity for track in tracks}:
            self._fade_out(identity)
        for track in tracks:
            if not begins_shot and track.identity not in before:
                self._fade_in(track)
            self._shown[track.identity] = min(self._shown[track.identity] + 1, FADE + 1)
            track.presence = self._shown[track.identity] / (FADE + 1)
        self._held.append(tracks)

    def _fade_out(self, identity: int) -> None:
        for number, held in enumerate(reversed(self._held), 1):
            for track in held:
                if track.identity == identity:
                    track.presence = min(track.presence, number / (FADE + 1))

    def _restore(self, identity: int) -> None:
        for held in self._held:
            for track in held:
                if track.identity == identity:
                    track.presence = 1.0

    def _fade_in(self, track: Track) -> None:
        """Show a face from the frame on in which it came into view; one that was only missed, as if it were not."""
        identity, gap = track.identity, 0
        while gap < len(self._held) and all(other.identity != identity for other in self._held[-1 - gap]):
            gap += 1
        traced, begins_shot = self._trace_back(track, gap)
        was_missed = len(traced) == gap < len(self._held)
        if was_missed:
            self._restore(identity)
        is_known = identity in self._shown
        steps = 1 if was_missed or begins_shot else len(traced) + 1 if is_known else FADE + 1
        for number, (held, earlier) in enumerate(zip(reversed(self._held), traced, strict=False)):
            presence = min(1.0, (len(traced) - number) / steps)
            held.append(replace(earlier, identity=identity, target=track.target, presence=presence))
        self._shown[identity] = len(traced) if steps > FADE else FADE
