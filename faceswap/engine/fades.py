"""Fades of a swap, over frames that are held back: in before a face is found, out before it is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from .tracking import Track

FADE = 3
"""Frames over which a face that comes into view, or is lost, is handed over."""


class Fades:
    """The presence of the tracks of a clip's frames.

    trace_back   `trace_back(track, frames)` returns earlier tracks of a face, newest first, and whether a shot begins
                 with them
    lookahead    frames that are held back
    """

    def __init__(self, trace_back: Callable[[Track, int], tuple[list[Track], bool]], lookahead: int) -> None:
        self._trace_back = trace_back
        self._lookahead = lookahead
        self._held: deque[tuple[list[Track], dict[int, float]]] = deque(maxlen=lookahead + 1)
        """The tracks of each frame that is held back, and how far each face has come into view."""
        self._known: set[int] = set()

    def add(self, tracks: list[Track], *, begins_shot: bool) -> None:
        """Take the tracks of the next frame; those of the frames that are held back may change and get more."""
        if begins_shot:
            self._held.clear()
            self._known.clear()
        before = self._held[-1][1] if self._held else {}
        coming = {track.identity: 1.0 for track in tracks}
        for track in tracks:
            if track.identity in before:
                coming[track.identity] = min(1.0, before[track.identity] + 1 / (FADE + 1))
            elif not begins_shot:
                coming[track.identity] = self._come(track)
        self._known |= coming.keys()
        self._held.append((tracks, coming))
        self._leave()

    def _come(self, track: Track) -> float:
        """Show a face from the frame on that it came into view in; return how far it has come by now.

        One that was only missed is shown as if it had not been, one that comes back is complete when it is found.
        """
        held = list(reversed(self._held))[: self._lookahead]
        absent = next((k for k, (_, faces) in enumerate(held) if track.identity in faces), len(held))
        traced, begins_shot = self._trace_back(track, absent)
        # Missed for longer than this, it has begun to fade out in frames that are gone.
        was_missed = len(traced) == absent < len(held) and absent <= self._lookahead - FADE
        steps = FADE + 1
        if was_missed or begins_shot:
            steps = 1
        elif track.identity in self._known:
            steps = min(steps, len(traced) + 1)
        for age, (earlier, (tracks, coming)) in enumerate(zip(traced, held, strict=False)):
            coming[track.identity] = min(1.0, (len(traced) - age) / steps)
            tracks.append(replace(earlier, identity=track.identity, target=track.target))
        return min(1.0, (len(traced) + 1) / steps)

    def _leave(self) -> None:
        """Set how present each face is, less before frames without it."""
        for number, (tracks, coming) in enumerate(self._held):
            later = [faces for _, faces in islice(self._held, number + 1, number + 1 + FADE)]
            for track in tracks:
                left = next((k for k, faces in enumerate(later, 1) if track.identity not in faces), FADE + 1)
                track.presence = min(coming[track.identity], left / (FADE + 1))
