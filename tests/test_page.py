"""The web page in a real Chromium: the ways of an editor, every error, two tabs, a phone, a keyboard, axe-core."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pytest_asyncio
from browser import chromium, make_people, violations, visit
from playwright.async_api import Browser, Locator, Page, Route, expect
from ports import free_port
from processes import Child, Engine, dead_url
from service_rig import QUICK, EngineRig, ServiceRig, running_service
from waiting import WAIT_S, eventually

from faceswap import samples
from faceswap.keyring import new_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

TUS = {"Tus-Resumable": "1.0.0"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@dataclass
class Desk:
    """A service whose engine paints, and files to swap."""

    service: ServiceRig
    engine: EngineRig
    one: Path
    """A clip of one person."""
    two: Path
    """A clip of two people, the larger one to the left."""
    faceless: Path

    @property
    def url(self) -> str:
        return str(self.service.client.make_url("/"))

    async def job(self, name: str) -> dict[str, Any]:
        """Return the newest job with this label that is no trial of one frame, once there is one."""

        async def find() -> dict[str, Any] | None:
            jobs = (await self.service.get("/jobs"))["jobs"]
            return next((job for job in jobs if job["label"] == name and "at" not in job["options"]), None)

        found: dict[str, Any] = await eventually(find)
        return found

    async def cleared(self) -> None:
        """Delete the jobs that other tests have left."""
        for job in (await self.service.get("/jobs"))["jobs"]:
            async with self.service.client.delete(f"/jobs/{job['prompt_id']}") as response:
                assert response.status == 204


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("page")
    one, two, faceless = make_files(folder)
    # A prompt that a test holds is not to be taken for one that is stuck.
    timeouts = dataclasses.replace(QUICK, silence_s=WAIT_S, stuck_s=2 * WAIT_S, stop_s=3 * WAIT_S)
    async with (
        EngineRig(folder, paint=True) as engine,
        running_service(folder / "data", engine, timeouts=timeouts) as service,
    ):
        yield Desk(service, engine, one, two, faceless)


@pytest.fixture(autouse=True)
def released(desk: Desk) -> Iterator[None]:
    """Leave no prompt held, and the engine painting, whatever a test does."""
    yield
    desk.engine.release()
    desk.engine.set_faults(paint=True)


def make_files(folder: Path) -> tuple[Path, Path, Path]:
    """Make a clip of one person, one of two, and a picture without a face."""
    one = make_people(folder / "one.mp4", samples.SCENE)
    two = make_people(folder / "two.mp4", samples.SCENE, samples.FACE)
    faceless = folder / "wall.png"
    cv2.imwrite(str(faceless), np.full((120, 160, 3), 120, np.uint8))
    return one, two, faceless


async def choose(page: Page, *clips: Path, faces: tuple[Path, ...] = (samples.FACE,)) -> None:
    """Choose files, and wait until somebody in the last clip gets a new face."""
    await page.locator("#video-file").set_input_files(clips)
    await page.locator("#image-file").set_input_files(faces)
    await expect(page.locator("#sources button.face")).to_have_count(len(faces))
    await expect(page.locator("#wires path")).not_to_have_count(0)


def person(page: Page, number: int) -> Locator:
    return page.locator("#people button.face").nth(number)


def new_face(page: Page, number: int) -> Locator:
    return page.locator("#sources button.face").nth(number)


async def compare_at(page: Page, share: int) -> None:
    """Move the slider between before and after, and see that the picture is divided there."""
    slider = page.get_by_label("Before and after")
    await slider.fill(str(share))
    await expect(page.locator(".view")).to_have_attribute("style", re.compile(f"--divide: {share}%"))


async def delete(page: Page) -> None:
    await page.get_by_role("button", name="Delete", exact=True).first.click()
    await page.locator("#confirm-yes").click()


async def test_two_people_get_two_faces_by_clicking_and_one_frame_is_tried_first(desk: Desk, browser: Browser) -> None:
    await desk.cleared()
    async with visit(browser, desk.url) as page:
        assert await violations(page) == []
        await choose(page, desk.one, desk.two, faces=(samples.FACE, samples.SCENE))
        await expect(page.locator("#people button.face")).to_have_count(2)
        await expect(page.locator(".box")).to_have_count(2)
        await person(page, 0).click()
        await expect(page.locator("#join-hint")).to_have_text("Now click the new face.")
        assert await violations(page) == []
        await new_face(page, 1).click()
        await expect(person(page, 0)).to_have_attribute("aria-label", "Person 1 in the clip, gets face B")
        await page.locator(".box").nth(1).click()
        await new_face(page, 0).click()
        await page.get_by_label("Place in the clip").fill("0.5")
        await page.locator("#try").click()
        await expect(page.locator("#trial .view")).to_be_visible()
        await compare_at(page, 20)
        assert await violations(page) == []
        await page.get_by_label("Back to the clip").click()
        await page.get_by_label("Start of the part").fill("0.25")
        await page.get_by_label("End of the part").fill("0.75")
        await page.locator("#start").click()
        two, one = await desk.job("two.mp4"), await desk.job("one.mp4")
        assert two["options"]["mapping"] == [
            {"face": 0, "image": 1, "source_face": 0},
            {"face": 1, "image": 0, "source_face": 0},
        ]
        assert (two["options"]["start"], two["options"]["end"]) == (0.25, 0.75)
        assert "mapping" not in one["options"] and "start" not in one["options"]
        cards = page.locator("#finished > li")
        await expect(cards).to_have_count(2)
        await expect(page.locator("#clips > li")).to_have_count(0)
        jobs = (await desk.service.get("/jobs"))["jobs"]
        assert {job["prompt_id"] for job in jobs} == {one["prompt_id"], two["prompt_id"]}, "the trial is not erased"
        assert await violations(page) == []


async def test_a_job_is_live_until_it_is_done_and_compared_and_deleted(desk: Desk, browser: Browser) -> None:
    async with visit(browser, desk.url) as page:
        await choose(page, desk.two)
        desk.engine.hold()
        await page.locator("#start").click()
        await expect(page.locator("#job-name")).to_have_text("two.mp4")
        await expect(page.locator("#job-state")).to_have_text("Working")
        await expect(page.locator("#step")).to_contain_text("Swapping faces")
        assert await violations(page) == []
        await page.reload()
        await expect(page.locator("#step")).to_contain_text("Swapping faces")
        desk.engine.release()
        await expect(page.locator("#job-state")).to_have_text("Done")
        await expect(page.locator(".view .before")).to_be_visible()
        await compare_at(page, 80)
        await plays_in_step(page)
        assert await violations(page) == []
        await page.reload()
        await compare_at(page, 30)
        async with page.expect_download() as download:
            await page.locator("#download").click()
        job = await desk.job("two.mp4")
        saved = await (await download.value).path()
        assert hashlib.sha256(saved.read_bytes()).hexdigest() == job["sha256"]
        await delete(page)
        await expect(page.locator("#empty")).to_be_visible()
        async with desk.service.client.get(f"/status/{job['prompt_id']}") as answer:
            assert answer.status == 404


async def plays_in_step(page: Page) -> None:
    """Play the two videos, and see that neither leaves the other behind; the sound is the result's."""
    await page.get_by_role("button", name="Play").click()
    drift = (
        "() => { const [one, two] = document.querySelectorAll('.view video');"
        "return [one.currentTime, two.currentTime, one.muted, two.muted, one.paused]; }"
    )

    async def together() -> bool:
        one, two, *_ = await page.evaluate(drift)
        return one > 0.2 and abs(one - two) < 0.1

    await eventually(together)
    await page.get_by_role("button", name="Pause").click()

    async def still_together() -> bool:
        one, two, *_, is_paused = await page.evaluate(drift)
        return bool(is_paused) and abs(one - two) < 0.001

    await eventually(still_together)
    assert (await page.evaluate(drift))[2:4] == [False, True]


async def test_waiting_jobs_are_moved_and_cancelled(desk: Desk, browser: Browser, tmp_path: Path) -> None:
    names = [f"clip {number}.mp4" for number in range(5)]
    clips = [shutil.copy(desk.one, tmp_path / name) for name in names]
    async with visit(browser, desk.url) as page:
        await choose(page, *clips)
        desk.engine.hold()
        await page.locator("#start").click()
        shown = page.locator("#active h3")
        await expect(page.locator("#active .up:visible")).to_have_count(3)
        await expect(shown).to_have_count(5)
        waiting = await shown.all_inner_texts()
        await page.get_by_role("button", name=f"Move {waiting[4]} up").click()
        await expect(shown).to_have_text([*waiting[:3], waiting[4], waiting[3]])
        await page.get_by_role("button", name=f"Cancel {waiting[3]}").click()
        await expect(shown).to_have_text([*waiting[:3], waiting[4]])
        await expect(page.locator("#finished .chip").first).to_have_text("Cancelled")
        desk.engine.release()
        await expect(page.locator("#active > li")).to_have_count(0)


async def test_a_card_never_vanishes_between_sent_and_listed(desk: Desk, browser: Browser) -> None:
    watch = """() => {
        const list = document.querySelector("#active");
        window.counts = [];
        new MutationObserver(() => window.counts.push(list.children.length)).observe(list, { childList: true });
    }"""
    async with visit(browser, desk.url) as page:
        await choose(page, desk.one)
        desk.engine.hold()
        await page.evaluate(watch)
        await page.locator("#start").click()
        await expect(page.locator("#active h3 a")).to_have_count(1)
        assert min(await page.evaluate("window.counts")) == 1
        desk.engine.release()
        await expect(page.locator("#active > li")).to_have_count(0)


async def test_again_with_other_options_takes_the_clip_and_the_faces_of_the_job(desk: Desk, browser: Browser) -> None:
    async with visit(browser, desk.url) as page:
        await choose(page, desk.two)
        await person(page, 1).click()
        await person(page, 0).click()
        await page.locator("#start").click()
        await expect(page.locator("#job-state")).to_have_text("Done")
        first = await desk.job("two.mp4")
        await page.locator("#again").click()
        await expect(page.locator("#wires path")).to_have_count(1)
        await expect(person(page, 1)).to_have_attribute("aria-label", "Person 2 in the clip, gets face A")
        await page.locator("#options > summary").click()
        await page.get_by_label("Result as").select_option("gif")
        await page.locator("#start").click()
        await expect(page.locator("#job-state")).to_have_text("Done")
        await expect(page.locator("img.after")).to_be_visible()
        second = await desk.job("two.mp4")
        assert second["prompt_id"] != first["prompt_id"]
        assert second["options"] == {**first["options"], "format": "gif"}
        assert second["result"].endswith(".gif")


async def test_everything_works_with_the_keyboard_alone(desk: Desk, browser: Browser) -> None:
    async with visit(browser, desk.url) as page:
        await choose(page, desk.two, faces=(samples.FACE, samples.SCENE))
        await reach(page, "#playhead")
        await page.keyboard.press("Shift+ArrowRight")
        await page.keyboard.press("ArrowLeft")
        await page.keyboard.press("o")
        await reach(page, "#people button")
        await page.keyboard.press("Enter")
        await reach(page, "#sources li:nth-child(2) .face")
        await page.keyboard.press("Enter")
        await expect(person(page, 0)).to_have_attribute("aria-label", "Person 1 in the clip, gets face B")
        await reach(page, "#try")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Before and after")).to_be_focused()
        await page.keyboard.press("ArrowRight")
        await reach(page, "#start")
        await page.keyboard.press("Enter")
        await expect(page.locator("#job-state")).to_have_text("Done")
        await expect(page.locator(".slider")).to_be_visible()
        await reach(page, ".slider")
        await page.keyboard.press("Home")
        await expect(page.locator(".slider")).to_have_value("0")
        await reach(page, "#delete")
        await page.keyboard.press("Enter")
        await expect(page.locator("#confirm-no")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.locator("#delete")).to_be_focused()
        job = await desk.job("two.mp4")
        assert 0.9 < job["options"]["end"] < 1.0


async def reach(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus, and see that the focus is shown."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached with Tab")


async def test_on_a_phone_nothing_is_cut_off_in_either_direction_of_writing(desk: Desk, browser: Browser) -> None:
    async with visit(browser, desk.url, **PHONE) as page:
        await fits(page)
        await choose(page, desk.two)
        await fits(page)
        await page.locator("#start").tap()
        await expect(page.locator("#job-state")).to_have_text("Done")
        await fits(page)
        assert await violations(page) == []
        await page.locator("#close-job").tap()
        await fits(page)


async def fits(page: Page) -> None:
    """See that a page is no wider than its window, from left to right and from right to left."""
    for direction in ("rtl", "ltr"):
        over = await page.evaluate(
            "direction => { document.documentElement.dir = direction;"
            " return document.documentElement.scrollWidth - document.documentElement.clientWidth; }",
            direction,
        )
        assert over <= 0, direction


async def test_two_tabs_tell_the_same(desk: Desk, browser: Browser) -> None:
    async with visit(browser, desk.url) as page:
        other = await page.context.new_page()
        await other.goto(desk.url)
        await choose(page, desk.two)
        desk.engine.hold()
        await page.locator("#start").click()
        running = other.locator("#active").get_by_role("link", name="two.mp4")
        await running.click()
        await expect(other.locator("#job-state")).to_have_text("Working")
        desk.engine.release()
        for tab in (page, other):
            await tab.bring_to_front()
            await expect(tab.locator("#job-state")).to_have_text("Done")
        await delete(page)
        await other.bring_to_front()
        await expect(other.locator("#form-error")).to_have_text("This job is not known, or was deleted.")


async def test_every_mistake_is_told_where_it_can_be_mended(desk: Desk, browser: Browser, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    async with visit(browser, desk.url) as page:
        error = page.locator("#form-error")
        await page.locator("#start").click()
        await expect(error).to_have_text("Choose a clip first.")
        await page.locator("#video-file").set_input_files([text])
        await expect(page.locator("#clips .wrong .note")).not_to_have_text("")
        await page.get_by_label("Remove notes.mp4").click()
        await page.locator("#video-file").set_input_files([desk.one])
        await page.locator("#start").click()
        await expect(error).to_have_text("Choose a picture of a face first.")
        await page.locator("#image-file").set_input_files([desk.faceless])
        await expect(page.locator("#sources .note")).to_have_text("No face was found in this picture.")
        assert await violations(page) == []
        await page.locator("#start").click()
        await expect(error).to_have_text("No face was found in this picture.")
        await page.get_by_label("Remove wall.png").click()
        await page.locator("#image-file").set_input_files([samples.FACE])
        await expect(page.locator("#wires path")).to_have_count(1)
        await person(page, 0).click()
        await page.locator("#start").click()
        await expect(error).to_contain_text("Nobody in “one.mp4” gets a new face yet")
        await person(page, 0).click()
        await page.locator("#options > summary").click()
        await page.get_by_label("Name of the result").fill(".hidden")
        await page.locator("#start").click()
        await expect(error).to_contain_text("“Name of the result” can be letters")
        await page.get_by_label("Name of the result").fill("")
        await page.locator("#addresses > summary").click()
        await page.get_by_label("Address of a clip").fill("somewhere")
        await page.locator("#add-address").click()
        await expect(error).to_contain_text("http://")
        await page.get_by_label("Address of a clip").fill("")
        desk.engine.set_faults(unswapped=True)
        await page.locator("#start").click()
        await expect(page.locator("#job-state")).to_have_text("Failed")
        await expect(page.locator("#job-error")).to_contain_text("face")
        assert await violations(page) == []
        desk.engine.set_faults(paint=True)
        await page.locator("#retry").click()
        await expect(page.locator("#job-state")).to_have_text("Done")
        await page.goto(f"{desk.url}#job=unknown")
        await expect(error).to_have_text("This job is not known, or was deleted.")


async def test_what_the_service_refuses_is_told_in_the_queue_and_tried_again(desk: Desk, browser: Browser) -> None:
    refused: list[Route] = []

    async def refuse(route: Route) -> None:
        refused.append(route)
        body = json.dumps({"detail": "The queue is full; try again later.", "code": "queue_full"})
        await route.fulfill(status=503, content_type="application/problem+json", body=body)

    async with visit(browser, desk.url) as page:
        await choose(page, desk.one)
        await page.route("**/face-swap", refuse)
        await page.locator("#start").click()
        await expect(page.locator("#active [role=alert]")).to_have_text("The queue is full; try again later.")
        assert await violations(page) == []
        await page.unroute("**/face-swap")
        await page.get_by_role("button", name="Try again").click()
        await expect(page.locator("#job-state")).to_have_text("Done")
    assert len(refused) == 1


async def test_uploads_that_the_service_has_lost_are_sent_anew(desk: Desk, browser: Browser) -> None:
    async with visit(browser, desk.url) as page:
        await choose(page, desk.two)
        lost = await whole_uploads(desk, page, 2, set())
        await lose(desk, lost)
        async with page.expect_response(lambda answer: answer.url.endswith("/faces") and answer.ok):
            await page.get_by_label("Place in the clip").fill("0.5")
        await expect(page.locator("#clips .wrong")).to_have_count(0)
        await page.locator("#image-file").set_input_files([samples.SCENE])
        await expect(page.locator("#sources button.face")).to_have_count(2)
        await lose(desk, await whole_uploads(desk, page, 2, lost))
        await page.locator("#start").click()
        await expect(page.locator("#job-state")).to_have_text("Done")


async def whole_uploads(desk: Desk, page: Page, wanted: int, lost: set[str]) -> set[str]:
    """Return the uploads that the page remembers and the service has, once all of so many are whole."""

    async def find() -> set[str] | None:
        items: dict[str, str] = await page.evaluate("({...localStorage})")
        ids = {value for name, value in items.items() if name.startswith("faceswap-upload ")} - lost
        for upload_id in ids:
            async with desk.service.client.head(f"/uploads/{upload_id}", headers=TUS) as answer:
                if answer.headers.get("Upload-Offset") != answer.headers.get("Upload-Length"):
                    return None
        return ids if len(ids) == wanted else None

    found: set[str] = await eventually(find)
    return found


async def lose(desk: Desk, uploads: set[str]) -> None:
    """Delete uploads behind the back of the page."""
    for upload_id in uploads:
        async with desk.service.client.delete(f"/uploads/{upload_id}", headers=TUS) as answer:
            assert answer.status == 204


async def test_the_page_can_be_used_before_the_service_has_told_anything(desk: Desk, browser: Browser) -> None:
    async def hold(_: Route) -> None:
        """Never answer."""

    async with visit(browser, desk.url) as page:
        await page.route("**/health", hold)
        await page.route("**/jobs?*", hold)
        await page.reload()
        await page.get_by_role("button", name="Try the sample").click()
        await expect(page.locator("#wires path")).to_have_count(1)


async def test_a_result_is_compared_also_when_its_status_comes_once_more(desk: Desk, browser: Browser) -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    async def give_original_late(route: Route) -> None:
        asked.set()
        await told.wait()
        await route.continue_()

    async def list_nothing(route: Route) -> None:
        await asked.wait()
        await route.fulfill(json={"jobs": []})

    async def give_status(route: Route) -> None:
        is_second = asked.is_set()
        await route.fulfill(response=await route.fetch())
        if is_second:
            told.set()

    prompt_id = await desk.service.post(desk.one)
    await desk.service.ended(prompt_id)
    async with visit(browser, desk.url) as page:
        await page.route("**/jobs/*/video?*", give_original_late)
        await page.route("**/jobs?*", list_nothing)
        await page.route("**/status/*", give_status)
        await page.goto(f"{desk.url}#job={prompt_id}")
        await page.reload()
        await expect(page.locator(".view .before")).to_be_visible()


async def test_comfyui_that_is_away_is_told_large_and_with_what_to_do(browser: Browser, tmp_path: Path) -> None:
    url = dead_url()
    async with (
        running_service(tmp_path / "data", url) as service,
        visit(browser, str(service.client.make_url("/"))) as page,
    ):
        await expect(page.locator("#away-title")).to_have_text("ComfyUI does not answer")
        await expect(page.locator("#away-steps")).to_contain_text(url)
        assert await violations(page) == []


async def test_with_keys_the_page_asks_for_one_and_shares_links(desk: Desk, browser: Browser, tmp_path: Path) -> None:
    key = new_key()
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{hashlib.sha256(key.encode()).hexdigest()}\n")
    headers = {"Authorization": f"Bearer {key}"}
    async with running_service(tmp_path / "data", desk.engine, api_keys_file=keys, headers=headers) as service:
        url = str(service.client.make_url("/"))
        async with visit(browser, url) as page:
            assert await violations(page) == []
            await page.get_by_label("Key").fill("fsk_wrong")
            await page.keyboard.press("Enter")
            await expect(page.locator("#key-error")).to_contain_text("not one of ours")
            await page.get_by_label("Key").fill(key)
            await page.keyboard.press("Enter")
            await choose(page, desk.one)
            await page.locator("#start").click()
            await expect(page.locator("#job-state")).to_have_text("Done")
            await expect(page.locator(".view .before")).to_be_visible()
            await page.get_by_role("button", name="Share a link").click()
            await expect(page.locator("#shared-link")).to_have_value(re.compile(f"^{url}download/.*signature="))
            shared = await page.locator("#shared-link").input_value()
        async with visit(browser, url) as stranger:
            answer = await stranger.request.get(shared)
            assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")


async def test_a_service_that_is_killed_in_the_middle_is_found_again(browser: Browser, tmp_path: Path) -> None:
    one, *_ = make_files(tmp_path)
    port = free_port()
    command = ("faceswap", "serve", "--port", str(port), "--data-dir", str(tmp_path / "data"))
    async with Engine(tmp_path, paint=True) as engine:
        service = Child(
            tmp_path / "service.log", *command, "--comfyui-url", engine.url, env={"FACESWAP_MIN_FREE_MB": "0"}
        )
        async with service, visit(browser, f"http://127.0.0.1:{port}/", "ERR_|net::") as page:
            await engine.hold()
            await choose(page, one)
            await page.locator("#start").click()
            await expect(page.locator("#job-state")).to_have_text("Working")
            await service.kill()
            await expect(page.locator("#away-title")).to_contain_text("The service does not answer")
            await service.start()
            await expect(page.locator("#away")).to_be_hidden()
            engine.release()
            await expect(page.locator("#job-state")).to_have_text("Done")
            await compare_at(page, 50)
