"""Where the handlers find the parts of the application."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..comfy.embedded import EmbeddedEngine
from ..config import Settings
from ..files import Files
from ..hub import Hub
from ..intake.readers import Intake
from ..intake.submit import Submitter
from ..progress_reporter import ProgressReporter
from ..runner import Runner
from ..store import Store

SETTINGS = web.AppKey("settings", Settings)
STORE = web.AppKey("store", Store)
HUB = web.AppKey("hub", Hub)
RUNNER = web.AppKey("runner", Runner)
REPORTS = web.AppKey("reports", ProgressReporter)
INTAKE = web.AppKey("intake", Intake)
SUBMITTER = web.AppKey("admission", Submitter)
FILES = web.AppKey("folders", Files)

STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the service begins to stop."""

ENGINE: web.AppKey[EmbeddedEngine | None] = web.AppKey("engine")
"""The embedded engine; None where ComfyUI servers were named."""

OWNER = web.RequestKey("owner", str)
"""The name of the API key a request came with; absent where no keys are in use."""


def owner(request: web.Request) -> str | None:
    """Return whose jobs a request may see: None for those that nobody owns."""
    return request.get(OWNER)
