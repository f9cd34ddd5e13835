"""`make screenshots`: pictures of the page for the documentation, from the real service with its embedded engine."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import chromium, make_people, visit
from playwright.async_api import Browser, Page, expect
from processes import Service

from faceswap import samples

WINDOW: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
QUALITY = 84


class Album:
    """The pictures, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def take(self, page: Page, name: str, *, whole: bool = False) -> None:
        await page.mouse.move(0, 0)
        path = self.folder / f"{name}.jpg"
        await page.screenshot(path=path, full_page=whole, type="jpeg", quality=QUALITY, animations="disabled")
        sys.stdout.write(f"{path}\n")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../docs/screenshots"))
    album = Album(parser.parse_args().out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, people = folder / "moonwalk.mp4", folder / "two friends.mp4"
        samples.make_clip(clip)
        make_people(people, samples.SCENE, samples.FACE, frames=100)
        async with Service(folder) as service, chromium() as browser:
            await _bench(browser, service.url + "/", album, clip, people)
            await _phone_and_dark(browser, service.url + "/", album, people)
            await _error(browser, service, album)


async def _choose(page: Page, *clips: Path, faces: tuple[Path, ...]) -> None:
    await page.locator("#video-file").set_input_files(clips)
    await page.locator("#image-file").set_input_files(faces)
    await expect(page.locator("#sources button.face")).to_have_count(len(faces))
    await expect(page.locator(".box")).not_to_have_count(0)
    await expect(page.locator("#clips .sending")).to_have_count(0)


async def _bench(browser: Browser, url: str, album: Album, clip: Path, people: Path) -> None:
    async with visit(browser, url, **WINDOW) as page:
        await expect(page.locator("#health")).to_have_text("Ready")
        await album.take(page, "start")
        await _choose(page, clip, people, faces=(samples.FACE, samples.SCENE))
        await page.get_by_label("Start of the part").fill("0.6")
        await page.get_by_label("End of the part").fill("3.2")
        await page.get_by_label("Place in the clip").fill("1.8")
        await expect(page.locator(".box")).to_have_count(2)
        await album.take(page, "faces")
        await page.locator("#try").click()
        await expect(page.locator("#trial .view")).to_be_visible()
        await album.take(page, "trial")
        await page.locator("#start").click()
        await page.locator("#active").get_by_role("link", name=clip.name).click()
        await expect(page.locator("#figures")).to_contain_text("frames")
        await expect(page.locator("#preview")).to_have_attribute("src", re.compile("preview/"))
        await album.take(page, "queue", whole=True)
        await expect(page.locator("#job-state")).to_have_text("Done")
        await page.locator(".seek").fill("2")
        await expect(page.locator("#finished > li")).to_have_count(2)
        await album.take(page, "done", whole=True)


async def _phone_and_dark(browser: Browser, url: str, album: Album, people: Path) -> None:
    async with visit(browser, url, **PHONE) as page:
        await _choose(page, people, faces=(samples.FACE,))
        await album.take(page, "phone")
    async with visit(browser, url, **WINDOW, color_scheme="dark") as page:
        await _choose(page, people, faces=(samples.FACE, samples.SCENE))
        await album.take(page, "dark")


async def _error(browser: Browser, service: Service, album: Album) -> None:
    async with visit(browser, service.url + "/", "ERR_|net::", **WINDOW) as page:
        await expect(page.locator("#finished > li")).not_to_have_count(0)
        await service.kill()
        await expect(page.locator("#away")).to_be_visible()
        await album.take(page, "error")


if __name__ == "__main__":
    asyncio.run(main())
