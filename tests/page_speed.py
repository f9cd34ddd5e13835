"""`make page-speed`: the time from the first byte until the web page can be used, with the processor slowed."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from browser import chromium, visit
from processes import Service
from waiting import eventually

USABLE = (
    "() => { const [mark] = performance.getEntriesByName('usable');"
    " return mark && mark.startTime - performance.getEntriesByType('navigation')[0].responseStart; }"
)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slowed", type=int, default=6, help="times by which the processor is slower (6)")
    parser.add_argument("--visits", type=int, default=9)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        async with Service(Path(folder)) as service, chromium() as browser:
            for _ in range(arguments.visits):
                async with visit(browser, "about:blank", ".") as page:
                    session = await page.context.new_cdp_session(page)
                    await session.send("Emulation.setCPUThrottlingRate", {"rate": arguments.slowed})
                    await page.goto(f"{service.url}/")
                    found.append(await eventually(lambda page=page: page.evaluate(USABLE)) / 1000)
    figures = f"median {statistics.median(found):.2f} s, best {min(found):.2f} s, worst {max(found):.2f} s"
    sys.stdout.write(f"usable after the first byte, {arguments.slowed} times slowed: {figures}\n")


if __name__ == "__main__":
    asyncio.run(main())
