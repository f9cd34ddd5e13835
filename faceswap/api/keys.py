"""Where the handlers find the parts of the application."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..admission import Admission
from ..comfy.embedded import EmbeddedEngine
from ..config import Settings
from ..folders import Folders
from ..hub import Hub
from ..intake import Intake
from ..reports import Reports
from ..runner import Runner
from ..store import Store

SETTINGS = web.AppKey("settings", Settings)
STORE = web.AppKey("store", Store)
HUB = web.AppKey("hub", Hub)
RUNNER = web.AppKey("runner", Runner)
REPORTS = web.AppKey("reports", Reports)
INTAKE = web.AppKey("intake", Intake)
ADMISSION = web.AppKey("admission", Admission)
FOLDERS = web.AppKey("folders", Folders)

STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the service begins to stop."""

ENGINE: web.AppKey[EmbeddedEngine | None] = web.AppKey("engine")
"""The embedded engine; None where ComfyUI servers were named."""

OWNER = web.RequestKey("owner", str)
"""The name of the API key a request came with; absent where no keys are in use."""


def owner(request: web.Request) -> str | None:
    """Whose jobs a request may see: None for everybody's."""
    return request.get(OWNER)
