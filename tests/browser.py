"""A real Chromium, driven by Playwright; a page of the service in it, and whatever went wrong there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from clips import Picture, make_clip
from machine import program
from playwright.async_api import Browser, Page, async_playwright, expect
from waiting import WAIT_S

from faceswap import samples

ARGUMENTS = ("--no-sandbox", "--mute-audio", "--disable-gpu")
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js")
RULES: Mapping[Literal["light", "dark"], Any] = {
    "light": {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]},
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
}
"""Options of axe-core for each theme."""

expect.set_options(timeout=WAIT_S * 1000)


@asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    """Yield a browser without a window."""
    path = program("chromium", "chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=[*ARGUMENTS, *arguments], timeout=WAIT_S * 1000
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visit(browser: Browser, url: str, *allowed: str, **context: Any) -> AsyncIterator[Page]:
    """Yield the page of a service, in a session of its own. In the end nothing is to have gone wrong in it.

    What the browser tells of answers that are errors, and of players that were taken away, is no fault. Other messages
    are, unless one of the patterns in `allowed` is in them; and so is a call to any other host.
    """
    faults: list[str] = []
    session = await browser.new_context(**context)
    session.set_default_timeout(WAIT_S * 1000)

    def look(page: Page) -> None:
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
        page.on("request", lambda request: _is_foreign(request.url, url) and faults.append(request.url))

    session.on("page", look)
    page = await session.new_page()
    await page.goto(url)
    yield page
    await session.close()
    harmless = re.compile("|".join(("Failed to load resource", *allowed)))
    assert [fault for fault in faults if not harmless.search(fault)] == []


def _is_foreign(address: str, url: str) -> bool:
    return not address.startswith((url, "blob:", "data:"))


async def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page as it is, in the light and in the dark theme."""
    if not await page.evaluate("Boolean(window.axe)"):
        await page.evaluate(AXE.read_text())
    found = set()
    for scheme, options in RULES.items():
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        results = await page.evaluate("options => axe.run(document, options)", options)
        for violation in results["violations"]:
            for node in violation["nodes"]:
                found.add(f"{scheme}: {violation['id']}: {node['html'][:120]}: {node['failureSummary'][:300]}")
    await page.emulate_media(color_scheme="light")
    return sorted(found)


def portrait(path: Path, width: int, height: int) -> Picture:
    """Return the face of a picture, RGB, of this size."""
    picture = cv2.imread(str(path))
    assert picture is not None
    if path == samples.SCENE:
        picture = picture[10:270, 96:356]
    cut = picture.shape[0] * width // height
    left = (picture.shape[1] - cut) // 2
    part = picture[:, left : left + cut]
    return np.asarray(cv2.cvtColor(cv2.resize(part, (width, height)), cv2.COLOR_BGR2RGB))


def make_people(path: Path, *people: Path, frames: int = 24) -> Path:
    """Write a clip of people side by side, the first the largest, under a bar that grows."""
    widths = [320 - 60 * place for place in range(len(people))]
    scene = np.hstack([portrait(person, width, 320) for person, width in zip(people, widths, strict=True)])

    def draw(number: int, width: int, height: int) -> Picture:
        picture = scene.copy()
        picture[:8, : number % 24 * 8] = 235
        return picture

    return make_clip(path, frames, size=(sum(widths), 320), draw=draw)
