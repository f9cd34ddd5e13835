"""The short form of `make fuzz GROUP=socket`: made-up conversations with a service whose jobs wait for an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from processes import Service
from system.fuzz_socket import Client, conversations, fuzz_socket
from talk import Api, Media

NOBODY = "http://127.0.0.1:1"
CASES = 150


async def test_whatever_a_socket_is_sent_it_answers_as_described(tmp_path: Path) -> None:
    media = Media(tmp_path)
    files = {"video": media.video, "image": media.image}
    service = Service(tmp_path, NOBODY)
    async with service, aiohttp.ClientSession() as session:
        prompt_id = await Api(service.url, session, media).submit()
        client = Client(service.url, files, {})
        await asyncio.to_thread(fuzz_socket, client, conversations(files, [prompt_id]), CASES, 1)
        async with session.get(f"{service.url}/jobs?limit=200") as response:
            jobs = {job["prompt_id"] for job in (await response.json())["jobs"]}
        kept = service.files()
    assert len(client.refusals) > 8
    assert {name.split("/")[1] for name in kept if name.startswith("inputs/")} == jobs and len(jobs) > 5
    assert "Traceback" not in service.log(), service.log()
