"""Keys under which handlers find the parts of the application."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..comfy.embedded import EmbeddedEngine
from ..config import Settings
from ..feed import Feed
from ..files import Files
from ..hub import Hub
from ..intake import Submitter
from ..node import Node
from ..progress_reporter import ProgressReporter
from ..scheduler import Scheduler
from ..store import Store

SETTINGS = web.AppKey("settings", Settings)
STORE = web.AppKey("store", Store)
HUB = web.AppKey("hub", Hub)
FEED = web.AppKey("feed", Feed)
SCHEDULER = web.AppKey("scheduler", Scheduler)
PROGRESS_REPORTER = web.AppKey("progress_reporter", ProgressReporter)
SUBMITTER = web.AppKey("submitter", Submitter)
FILES = web.AppKey("files", Files)
NODE = web.AppKey("node", Node)

STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the service begins to stop."""

ENGINE: web.AppKey[EmbeddedEngine | None] = web.AppKey("engine")
"""The embedded engine; None where ComfyUI servers were named."""

OWNER = web.RequestKey("owner", str)
"""The name of the API key a request came with; absent where no keys are in use."""


def owner_of(request: web.Request) -> str | None:
    """Return the owner whose jobs a request may see; None, where no keys are in use, for the jobs without an owner."""
    return request.get(OWNER)
