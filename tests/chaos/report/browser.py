"""A headless Chromium, driven through its DevTools protocol: what a page looks like to who reads it."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import aiohttp

BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
MEDIA = {
    "light": {"media": "screen", "features": [{"name": "prefers-color-scheme", "value": "light"}]},
    "dark": {"media": "screen", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    "print": {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "light"}]},
}
LOADED = """
new Promise(done => document.readyState === 'complete' ? done(1) : addEventListener('load', () => done(1)))
"""


def chromium() -> str | None:
    return next((found for name in BINARIES if (found := shutil.which(name))), None)


class Page:
    """One tab. Its commands are those of the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    async def command(self, method: str, **parameters):
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                answer = json.loads((await self._socket.receive()).data)
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

    async def look_at(self, path: Path, how: str, width: int = 1200) -> None:
        """Open a file as on a screen in light or dark, or as on paper."""
        await self.command("Emulation.setEmulatedMedia", **MEDIA[how])
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        await self.command("Page.navigate", url=path.as_uri())
        await self.ask(LOADED)

    async def ask(self, expression: str):
        result = await self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = await self.command("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        return base64.b64decode(shot["data"])


@contextlib.asynccontextmanager
async def opened(profile: Path):
    """A tab of a browser that ends with the block."""
    process = await asyncio.create_subprocess_exec(
        str(chromium()),
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while "DevTools listening on" not in (line := (await process.stderr.readline()).decode()):
                assert line, "the browser ended before it could be driven"
        port = line.split("ws://127.0.0.1:")[1].split("/")[0]
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                address = (await answer.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                await page.command("Page.enable")
                yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()
