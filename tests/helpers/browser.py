"""Drives a headless Chromium by the DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Tab:
    """One page: its calls, what it said on the console, and what it asked for."""

    def __init__(self, socket):
        self.socket, self.numbers, self.waiting = socket, itertools.count(1), {}
        self.complaints, self.requests = [], []

    async def listen(self):
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                self.waiting.pop(message["id"]).set_result(message)
            elif "exception" in (params := message["params"]) or params.get("entry", {}).get("level") == "error":
                self.complaints.append(params)
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"])

    async def call(self, method, **params):
        number = next(self.numbers)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        answer = await asyncio.wait_for(self.waiting[number], 60)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def js(self, expression):
        """The value of an expression, awaited where it is a promise."""
        done = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, expression, seconds=60):
        """Wait until an expression is true, and return its value."""
        for _ in range(int(seconds / 0.05)):
            if value := await self.js(expression):
                return value
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {expression}; the page says: {await self.js('document.body.innerText')}")

    async def open(self, url):
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && typeof meet === 'function'")

    async def key(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    async def look(self, width, height, dark=False, mobile=False):
        """As the page is seen by a reader with such a screen and theme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=theme)

    async def shot(self, path):
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(taken["data"]))


@contextlib.asynccontextmanager
async def opened():
    """A tab of a Chromium of its own."""
    import websockets

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"),
                *("--remote-debugging-port=0", "--no-first-run", "--no-proxy-server", "--disable-dev-shm-usage"),
                "about:blank",
            ],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            port_file = Path(folder, "DevToolsActivePort")
            for _ in range(1200):
                if port_file.exists() and port_file.read_text().count("\n"):
                    break
                assert process.poll() is None, "Chromium ended"
                await asyncio.sleep(0.05)
            port, address = port_file.read_text().split()
            async with websockets.connect(f"ws://127.0.0.1:{port}{address}", max_size=None, proxy=None) as browser:
                await browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                targets = json.loads(await browser.recv())["result"]["targetInfos"]
                page = next(one["targetId"] for one in targets if one["type"] == "page")
            url = f"ws://127.0.0.1:{port}/devtools/page/{page}"
            async with websockets.connect(url, max_size=None, proxy=None) as socket:
                tab = Tab(socket)
                listening = asyncio.ensure_future(tab.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
        finally:
            process.terminate()
            process.wait(30)
