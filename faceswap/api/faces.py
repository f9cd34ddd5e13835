"""Handler of `POST /faces`: the faces that a picture, or a frame of a video, shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..media import FacesFacts
from .keys import MEDIA, SETTINGS, SUBMITTER, owner_of
from .rate_limit import count_look


async def post_faces(request: web.Request) -> web.Response:
    """Find the faces of a picture, or of one frame of a video; nothing is kept."""
    await count_look(request)
    request.app[MEDIA].check_looks()
    async with request.app[SUBMITTER].looked_at(request, owner_of(request)) as look:
        facts = await request.app[MEDIA].look_for_faces(look.path, look.kind, look.at, request.app[SETTINGS].max_frames)
    return web.json_response(_document(facts))


def _document(facts: FacesFacts) -> dict[str, Any]:
    return {
        "width": facts.width,
        "height": facts.height,
        "faces": [asdict(face) for face in facts.faces],
        **(asdict(facts.frame) if facts.frame else {}),
    }
