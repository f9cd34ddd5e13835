"""A video of 2 GiB through each proxy of deploy/: `python -m system.through_proxies`, from `tests`; `make proxies`.

Meanwhile a watcher behind the same proxy waits for the end of a job that is held: its stream must neither break nor be
late. Too long for the suite. Prints times and the most memory of the proxy, and fails where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil
from clips import padded
from processes import Engine, Service, files_in
from system.reverse_proxies import KINDS, Behind, make_certificate, proxied
from system.talk import ENDED, Media

MIB = 2**20
PROXY_LIMIT_MB = 200


async def upload(behind: Behind, video: Path) -> str:
    """Submit a job with a large video; returns its prompt_id."""
    form = behind.form(video=None)
    with video.open("rb") as file:
        form.add_field("video", file, filename=video.name)
        headers = {"Prefer": "respond-async"}
        async with behind.session.post(f"{behind.url}/face-swap", data=form, headers=headers, timeout=None) as answer:
            assert answer.status == 202, await answer.text()
            return str((await answer.json())["prompt_id"])


async def watch(behind: Behind, prompt_id: str) -> str:
    """Follow a job over one connection; returns the last event's type."""
    async with behind.watching(prompt_id, timeout=None) as stream:
        types = [event.type async for event in stream]
    return types[-1]


class Memory:
    """The most memory that this process's children of a name have held, MiB."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.most_mb = 0.0

    async def measure(self) -> None:
        while True:
            children = psutil.Process().children(recursive=True)
            sizes = [child.memory_info().rss for child in children if child.name() == self._name]
            self.most_mb = max(self.most_mb, sum(sizes) / MIB)
            await asyncio.sleep(0.2)


async def run(kind: str, folder: Path, certificate: Path, video: Path) -> list[str]:
    """Send a video through a proxy of this kind; returns the faults."""
    media = Media(folder)
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        proxied(kind, service.url, folder / "proxy", certificate, media) as behind,
    ):
        await engine.hold()
        held = await behind.submit()
        await behind.until(held, "PROCESSING")
        watching = asyncio.create_task(watch(behind, held))
        memory = Memory(kind.split()[0])
        measuring = asyncio.create_task(memory.measure())
        started = time.monotonic()
        sent = await upload(behind, video)
        upload_s = time.monotonic() - started
        written = {name: (folder / "proxy" / name).stat().st_size for name in files_in(folder / "proxy")}
        faults = ["the stream ended before its job did"] if watching.done() else []
        engine.release()
        last = await watching
        end = await behind.until(sent, *ENDED)
        measuring.cancel()
    sys.stdout.write(
        f"{kind}: {video.stat().st_size // MIB} MiB in {upload_s:.0f} s, {memory.most_mb:.0f} MiB of memory\n"
    )
    faults += [] if last == "completed" else [f"the watched job ended with {last}"]
    faults += [] if end["status"] == "SUCCESS" else [f"the large job ended as {end['status']}: {end['error']}"]
    faults += [] if memory.most_mb < PROXY_LIMIT_MB else ["the proxy kept the upload in memory"]
    return faults + [f"the proxy kept {name}" for name, size in written.items() if size > MIB]


async def main(size_mb: int) -> int:
    """Run each proxy; 1 when a promise is broken."""
    faults = []
    with tempfile.TemporaryDirectory(prefix="faceswap-proxies-") as name:
        certificate = Path(name, "tls")
        certificate.mkdir()
        make_certificate(certificate)
        video = padded(Path(name, "video.mp4"), size_mb * MIB)
        for number, kind in enumerate(KINDS):
            folder = Path(name, str(number))
            (folder / "proxy").mkdir(parents=True)
            faults += [f"{kind}: {fault}" for fault in await run(kind, folder, certificate, video)]
    sys.stdout.write("".join(f"{fault}\n" for fault in faults) or "all as promised\n")
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=2048, help="of the video")
    sys.exit(asyncio.run(main(parser.parse_args().size_mb)))
