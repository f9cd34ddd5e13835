"""The service killed between the end of a job and its deliveries, again and again: `python -m system.deliveries`.

Run from `tests`. Each job calls a webhook and sends its result; the service is killed once the job has ended and before
either has been taken, or as they are, before it may know. Each must arrive, the webhook with a signature that the
`standardwebhooks` package verifies, and count as delivered after the restart.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import postgres
from clips import make_clip
from processes import Engine, Service, eventually
from receivers import SECRET, Received, Receiver, receiving

from faceswap.client import FaceSwap
from faceswap.samples import FACE

TAKEN = "as they are taken"
MOMENTS = ("at once", "while the receivers hold it", "a little later", TAKEN)
"""The moments at which the service is killed after a job's end has been told."""
DATABASES = ("sqlite", "postgresql")


class Killing:
    """A service that is killed at the end of its jobs, and what its receivers got."""

    def __init__(self, folder: Path, database: dict[str, object]) -> None:
        self.clip = make_clip(folder / "clip.mp4", 6, size=(96, 64))
        self.engine = Engine(folder, paint=True)
        self._folder = folder
        self._database = database

    async def run(self, rounds: int, rng: random.Random) -> None:
        """Kill so many times; raises AssertionError where something did not arrive."""
        async with self.engine, receiving() as receiver:
            settings = {"url_allow": "127.0.0.0/8", "webhook_secret": SECRET, **self._database}
            async with Service(self._folder, self.engine.url, **settings) as service:
                for number in range(rounds):
                    await self._round(service, receiver, number, MOMENTS[number % len(MOMENTS)], rng)

    async def _round(self, service: Service, receiver: Receiver, number: int, moment: str, rng: random.Random) -> None:
        hook, put = f"hook{number}", f"put{number}"
        if moment != TAKEN:
            receiver.answers |= {hook: receiver.hang, put: receiver.hang}
        begun = receiver.begun
        prompt_id = await self._submit(service, receiver, hook, put)
        async with FaceSwap(service.url) as client:
            async for event in client.events(prompt_id):
                assert event.type != "error", event
        if moment == "while the receivers hold it":
            async with asyncio.timeout(120):
                while receiver.begun < begun + 2:
                    await asyncio.sleep(0.01)
        elif moment == TAKEN:
            await asyncio.gather(receiver.came(hook), receiver.came(put))
        elif moment == "a little later":
            await asyncio.sleep(rng.random() * 1.5)
        await service.kill()
        receiver.answers.clear()
        await service.start()
        [webhook, *_], [result, *_] = await receiver.came(hook), await receiver.came(put)
        await self._check(service, prompt_id, webhook, result)
        for name in (hook, put):
            assert {len(received.body) for received in receiver.to(name)} == {len(receiver.to(name)[0].body)}

    async def _submit(self, service: Service, receiver: Receiver, hook: str, put: str) -> str:
        form = aiohttp.FormData({"webhook_url": f"{receiver.url}/{hook}", "result_put_url": f"{receiver.url}/{put}"})
        form.add_field("return_prompt_id_only", "1")
        form.add_field("video", self.clip.read_bytes(), filename="clip.mp4")
        form.add_field("image", FACE.read_bytes(), filename="face.png")
        async with aiohttp.ClientSession() as session, session.post(f"{service.url}/face-swap", data=form) as answer:
            assert answer.status == 200, await answer.text()
            return str((await answer.json())["prompt_id"])

    async def _check(self, service: Service, prompt_id: str, webhook: Received, result: Received) -> None:
        async with aiohttp.ClientSession(service.url) as session:
            async with session.get(f"/status/{prompt_id}") as answer:
                status = await answer.json()
            async with session.get(status["result"]) as answer:
                assert await answer.read() == result.body

            async def delivered() -> list[dict[str, Any]] | None:
                async with session.get(f"/jobs/{prompt_id}/deliveries") as answer:
                    found: list[dict[str, Any]] = (await answer.json())["deliveries"]
                return found if all(delivery["state"] == "delivered" for delivery in found) else None

            deliveries = await eventually(delivered)
        assert webhook.verified() == {
            "type": "job.completed",
            "timestamp": status["finished_at"],
            "data": status,
        }
        assert [delivery["id"] for delivery in deliveries if delivery["kind"] == "webhook"] == [webhook.id]


async def kill_often(database: str, rounds: int, seed: int) -> None:
    """Kill a service over a database so many times."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faceswap-deliveries-")))
        settings: dict[str, object] = {}
        if database == "postgresql":
            settings["database_url"] = stack.enter_context(postgres.empty_database())
        await Killing(folder, settings).run(rounds, random.Random(seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="kills on each database")
    parser.add_argument("--database", choices=DATABASES, action="append")
    parser.add_argument("--seed", type=int, default=9)
    arguments = parser.parse_args()
    for database in arguments.database or DATABASES:
        started = time.monotonic()
        asyncio.run(kill_often(database, arguments.rounds, arguments.seed))
        took = time.monotonic() - started
        sys.stdout.write(
            f"{database}: {arguments.rounds} kills, every webhook and every result arrived, in {took:.0f} s\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
