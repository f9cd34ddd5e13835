"""Keys under which handlers find the parts of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from ..comfy.embedded import EmbeddedEngine
from ..config import Settings
from ..feed import Feed
from ..files import Files
from ..hub import Hub
from ..intake import Submitter
from ..keyring import Keyring
from ..media import MediaWorker
from ..node import Node
from ..progress_reporter import ProgressReporter
from ..scheduler import Scheduler
from ..store import Store
from ..thumbnails import Thumbnails

SETTINGS = web.AppKey("settings", Settings)
STORE = web.AppKey("store", Store)
HUB = web.AppKey("hub", Hub)
FEED = web.AppKey("feed", Feed)
SCHEDULER = web.AppKey("scheduler", Scheduler)
PROGRESS_REPORTER = web.AppKey("progress_reporter", ProgressReporter)
SUBMITTER = web.AppKey("submitter", Submitter)
FILES = web.AppKey("files", Files)
MEDIA = web.AppKey("media", MediaWorker)
NODE = web.AppKey("node", Node)
THUMBNAILS = web.AppKey("thumbnails", Thumbnails)

KEYRING = web.AppKey("keyring", Keyring)
LINK_SECRET = web.AppKey("link_secret", bytes)
"""The secret that links are signed with."""

STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the service begins to stop."""

ENGINES: web.AppKey[Sequence[EmbeddedEngine]] = web.AppKey("engines")
"""The embedded engines; none where ComfyUI servers were named."""

OWNER: web.RequestKey[str | None] = web.RequestKey("owner")
"""The name of the API key a request came with, or the owner of the job that its signed link is for.

Absent where no keys are in use, and on the few routes that need none.
"""


def owner_of(request: web.Request) -> str | None:
    """Return the owner whose jobs a request may see; None, where no keys are in use, for the jobs without an owner."""
    return request.get(OWNER)
