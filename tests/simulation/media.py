"""The media worker of the simulation: a clip is a small document that names its frames."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from faceswap.errors import JobFailure
from faceswap.marks import Marks
from faceswap.media import JoinFacts, PieceFacts, Verdict

if TYPE_CHECKING:
    from .world import World


class SimulatedMedia:
    """Stands for the media worker: a clip is a small document that names its frames."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def _work(self) -> None:
        await asyncio.sleep(self._world.random.random() * 0.2)
        self._world.check_disk()
        if self._world.chance(self._world.media_trouble):
            raise JobFailure("media_failed", "Checking the result was cut short.", transient=True)

    async def cuttable(self, source: Path) -> bool:
        await self._work()
        return True

    async def cut(
        self,
        source: Path,
        out: Path,
        first_frame: int,
        frame_count: int,
        frame_rate: Fraction | None,
        max_bytes: int | None,
    ) -> PieceFacts:
        await self._work()
        clip = json.loads(source.read_text(encoding="utf-8"))
        piece = {**clip, "first": clip["first"] + first_frame, "count": frame_count}
        out.write_text(json.dumps(piece), encoding="utf-8")
        return PieceFacts(0, ".mp4")

    async def join(
        self,
        segments: Sequence[Path],
        source: Path,
        out: Path,
        frame_rate: Fraction | None,
        prompt_id: str,
        first_frame: int = 0,
        start: float | None = None,
        end: float | None = None,
    ) -> JoinFacts:
        await self._work()
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in segments]
        text = json.dumps(parts)
        out.write_text(text, encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        return JoinFacts(len(text), digest, sum(part["count"] for part in parts), 1.0, ())

    def marks(self, prompt_id: str, first_frame: int) -> Marks:
        return Marks(bytes(8), first_frame)

    async def mark(self, path: Path, marks: Marks, *, frame_count: int, crf: int) -> None:
        """Do nothing: it is not wanted by default."""

    async def verify(
        self,
        result: Path,
        source: Path,
        *,
        first_frame: int,
        frame_count: int,
        frame_rate: Fraction | None,
        crf: int | None,
    ) -> Verdict:
        part = json.loads(result.read_text(encoding="utf-8"))
        try:
            await self._work()
        except JobFailure:
            self._world.invariants.rejected.add(part["by"])
            raise
        if (part["first"], part["count"]) != (first_frame, frame_count):
            raise JobFailure("frames_missing", "The result has other frames.")
        return Verdict(frame_count, 1.0, ())
