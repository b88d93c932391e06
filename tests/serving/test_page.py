"""Test the page of `cnnlab serve` in a headless Chromium: pytest tests/serving/test_page.py

With CNNLAB_SCREENSHOTS=FOLDER it leaves pictures of the page there, as it is seen on wide and narrow screens, in light
and in dark.
"""

import asyncio
import base64
import io
import json
import os
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import uvicorn
from PIL import Image, ImageDraw

import cnnlab
from cnnlab import classify
from cnnlab.serving.app import make_app
from tests.helpers.browser import CHROMIUM, opened

pytest.importorskip("websockets")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
NAMES = (
    "<img src=x onerror=alert(1)>",
    "dog",
    "猫 and a name that is so long that it does not fit a narrow screen",
    "a_b*c*",
)
CARD = """# cnn on <b>shapes</b>

**cnn** on **a\\_b\\*\\*c**: test accuracy 56.85% (55.3% to 58.4%).

## Data

- shapes, 4 classes: &lt;img src=x onerror=alert(1)&gt;, dog
- sha256 of all images: `d1f273b6d399efe81b05a3d59b69c02d0d495b8e55cfd3122bc1757854c69fea`

## Confusion matrix

| true \\\\ predicted | &lt;img src=x onerror=alert(1)&gt; | a \\| b | dog | &#36;1 |
| --- | --- | --- | --- | --- |
| dog | 1 | 2 | 3 | 4 |
"""


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(3)
    return classify.Classifier("uri", cnnlab.build_cnn((32, 32, 3), len(NAMES), filters=(8, 8)), NAMES, 32, "crop")


@pytest.fixture
def serving(classifier, monkeypatch):
    """`serving(**arguments of make_app)`: the address of a server, whose model takes 5 s for a file that ends so."""
    image, running = classify.Classifier.image, []

    def slow(self, body, **bounds):
        time.sleep(5 * body.endswith(b"slow"))
        return image(self, body, **bounds)

    monkeypatch.setattr(classify.Classifier, "image", slow)

    def start(**arguments):
        app = make_app(classifier, about={"name": "<i>shapes</i>", "version": 2, "card": CARD}, **arguments)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def files(workplace):
    """A picture, one that takes long, one that is broken, and one of 50 MB."""
    picture = Image.new("RGB", (640, 400), "skyblue")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 300, 640, 400), fill="seagreen")
    draw.ellipse((220, 120, 420, 330), fill="saddlebrown")
    draw.polygon([(250, 150), (270, 60), (310, 130)], fill="saddlebrown")
    draw.polygon([(390, 150), (370, 60), (330, 130)], fill="saddlebrown")
    written = io.BytesIO()
    picture.save(written, "png")
    contents = {
        "<b>a cat.png": written.getvalue(),
        "slow.png": written.getvalue() + b"slow",
        "broken.png": written.getvalue()[:200],
        "large.png": os.urandom(50_000_000),
        "too_large.png": bytes(2**26 + 1),
    }
    for name, content in contents.items():
        (workplace / name).write_bytes(content)
    return {name: str(workplace / name) for name in contents}


async def drop(tab, *paths):
    """What a reader does who drags files from a folder onto the page."""
    data = {"items": [], "files": list(paths), "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        await tab.call("Input.dispatchDragEvent", type=kind, x=200, y=150, data=data)


SAID = "document.getElementById('said').textContent"
ANSWERED = f"running === null && shown !== null && {SAID}.includes('%') && {SAID}"


async def asked(tab):
    """How often the model was asked."""
    return sum("/explain" in one["url"] for one in tab.requests)


def browse(steps):
    async def all_steps():
        async with opened() as tab:
            await steps(tab)

    asyncio.run(all_steps())


async def photographed(tab, name):
    if folder := os.environ.get("CNNLAB_SCREENSHOTS"):
        Path(folder).mkdir(exist_ok=True)
        for width, height, kind in ((1400, 900, "wide"), (390, 844, "phone")):
            for dark in (False, True):
                await tab.look(width, height, dark, mobile=kind == "phone")
                await asyncio.sleep(0.4)
                await tab.shot(Path(folder, f"{name}_{kind}_{'dark' if dark else 'light'}.png"))


def test_a_dropped_picture_is_named_and_explained(serving, files, classifier):
    expected = classifier.probabilities(classifier.image(Path(files["<b>a cat.png"]).read_bytes())[None])[0]
    best = NAMES[expected.argmax()]

    async def steps(tab):
        await tab.look(1400, 900)
        await tab.open(serving())
        await tab.until("model !== null")
        await photographed(tab, "empty")
        await drop(tab, files["<b>a cat.png"])
        assert await tab.until(ANSWERED) == f"{best}, {100 * expected.max():.1f} %."
        names = "[...document.querySelectorAll('#bars .name')].map((name) => name.textContent)"
        assert await tab.js(names) == [NAMES[i] for i in np.argsort(-expected)]
        widths = "[...document.querySelectorAll('#bars .fill')].map((bar) => parseFloat(bar.style.width))"
        assert await tab.js(widths) == pytest.approx(sorted(100 * expected, reverse=True), abs=0.06)
        assert await tab.until("document.getElementById('picture').naturalWidth") == 640
        assert await tab.js("document.querySelectorAll('#bars img, header i, #card img, #card b b').length") == 0
        assert "<i>shapes</i>, version 2: 4 classes" in await tab.js("document.getElementById('about').textContent")
        cells = await tab.js("[...document.querySelectorAll('#card th')].map((cell) => cell.textContent)")
        assert cells == ["true \\ predicted", "<img src=x onerror=alert(1)>", "a | b", "dog", "$1"]
        assert await tab.js("document.querySelector('#card b + b').textContent") == "a_b**c"

        # The heat, by the keyboard alone: Space on the switch, Enter on the last class.
        assert await tab.js("document.getElementById('heat').hidden")
        await tab.js("document.getElementById('toggle').focus()")
        await tab.key(" ", 32, " ")
        painted = """(() => {
          const canvas = document.getElementById("heat"), {width, height} = canvas;
          if (canvas.hidden) return null;
          const alpha = (x) => canvas.getContext("2d").getImageData(Math.round(x * width), height >> 1, 1, 1).data[3];
          return [width / height, alpha(.02), alpha(.5), alpha(.98)];
        })()"""
        ratio, left, middle, right = await tab.until(painted)
        assert ratio == pytest.approx(1.6)
        assert [left, right] == [0, 0]  # the model sees the middle square only
        assert middle > 0
        note = "Yellow spoke most for it. The model sees its middle square."
        assert await tab.js("document.getElementById('note').textContent") == note
        await photographed(tab, "answered")
        await tab.js("document.getElementById('cardbox').open = true")
        await photographed(tab, "card")
        await tab.js("document.getElementById('cardbox').open = false")
        await tab.look(1400, 900)
        await tab.js("document.querySelector('#bars li:last-child button').focus()")
        await tab.key("Enter", 13, "\r")
        worst = NAMES[expected.argmin()]
        await tab.until(f"document.getElementById('explained').textContent === {json.dumps(worst)}")
        assert await tab.js("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert await tab.js("document.querySelector('[aria-pressed=true] .name').textContent") == worst
        assert tab.complaints == []
        assert all(one["url"].startswith(("http://127.0.0.1:", "blob:", "data:")) for one in tab.requests)

    browse(steps)


def test_a_picture_is_chosen_and_pasted(serving, files):
    async def steps(tab):
        await tab.look(1400, 900)
        await tab.open(serving())
        await tab.until("model !== null")

        # The button, by Enter.
        await tab.call("Page.setInterceptFileChooserDialog", enabled=True)
        await tab.js("document.getElementById('choose').focus()")
        await tab.key("Enter", 13, "\r")
        root = (await tab.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await tab.call("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
        await tab.call("DOM.setFileInputFiles", files=[files["<b>a cat.png"]], nodeId=node)
        await tab.until(ANSWERED)
        assert await asked(tab) == 1

        # The clipboard.
        await tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        png = io.BytesIO()
        Image.new("RGB", (90, 50), "red").save(png, "png")
        encoded = base64.b64encode(png.getvalue()).decode()
        await tab.js(f"""(async () => {{
          const bytes = Uint8Array.from(atob("{encoded}"), (letter) => letter.charCodeAt(0));
          const blob = new Blob([bytes], {{type: "image/png"}});
          await navigator.clipboard.write([new ClipboardItem({{"image/png": blob}})]);
        }})()""")
        await tab.call("Input.dispatchKeyEvent", type="keyDown", key="v", code="KeyV", modifiers=2, commands=["paste"])
        assert await tab.until("document.getElementById('picture').naturalWidth === 90 && running === null")
        await tab.js("document.getElementById('toggle').click()")
        places = """["picture", "heat"].map((id) => {
          const {x, y, width, height} = document.getElementById(id).getBoundingClientRect();
          return [x, y, width, height].map(Math.round);
        })"""
        picture, heat = await tab.js(places)
        assert picture == heat  # a small picture is enlarged, and the heat with it
        assert picture[2] == 256
        await photographed(tab, "small")
        assert tab.complaints == []

    browse(steps)


def test_what_goes_wrong_is_said(serving, files):
    async def steps(tab):
        await tab.look(1400, 900)
        await tab.open(serving())
        await tab.until("model !== null")
        for name, sentence in (
            ("broken.png", "Expected the body to be a picture file. Received: "),
            ("large.png", "Expected the body to be a picture file. Received: it is not in an image format."),
            ("too_large.png", "Expected at most 67,108,864 bytes. Received: 67,108,865."),
        ):
            await drop(tab, files[name])
            found = f"running === null && {SAID}.startsWith({json.dumps(sentence)})"
            await tab.until(found)
            assert await tab.js("document.getElementById('said').className") == "wrong"
            assert await tab.js("document.getElementById('result').hidden")
        await photographed(tab, "wrong")
        assert await asked(tab) == 2  # what is too large is not sent

        # A slow one: it is said that it takes time, and nothing is sent twice.
        before = await asked(tab)
        await drop(tab, files["slow.png"])
        await tab.until("!document.getElementById('busy').hidden")
        assert await tab.js("document.querySelector('main').getAttribute('aria-busy')") == "true"
        await drop(tab, files["slow.png"])
        await drop(tab, files["<b>a cat.png"])
        await tab.js("document.getElementById('choose').click()")
        assert await tab.js(SAID) == "The last picture is not answered yet. Wait for it, or stop it."
        await tab.until("document.getElementById('elapsed').textContent === '2 s'")
        await photographed(tab, "busy")
        await tab.until(ANSWERED)
        assert await asked(tab) == before + 1
        assert await tab.js("document.getElementById('busy').hidden")

        # Stopped, and the next one is taken.
        await drop(tab, files["slow.png"])
        await tab.until("!document.getElementById('busy').hidden")
        await tab.js("document.getElementById('stop').click()")
        await tab.until(f"running === null && {SAID} === 'Stopped.'")
        await drop(tab, files["<b>a cat.png"], files["broken.png"])
        assert "It is the first of 2 files; the others were not sent." in await tab.until(ANSWERED)

        # No file at all, and no server.
        data = {"items": [{"mimeType": "text/plain", "data": "a text"}], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await tab.call("Input.dispatchDragEvent", type=kind, x=200, y=150, data=data)
        await tab.until(f"{SAID}.startsWith('Expected a picture file. Received something else')")
        await tab.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        await drop(tab, files["<b>a cat.png"])
        await tab.until(f"{SAID}.startsWith('The server does not answer.')")

    browse(steps)


def test_the_token_is_asked_for_and_kept_in_the_tab(serving, files):
    async def steps(tab):
        await tab.look(1400, 900)
        await tab.open(serving(token="secret"))
        await tab.until("!document.getElementById('token').hidden")
        assert await tab.js("document.activeElement.id") == "secret"
        assert await tab.js("document.getElementById('about').textContent") == ""
        await photographed(tab, "token")
        await tab.call("Input.insertText", text="other")
        await tab.key("Enter", 13, "\r")
        await tab.until(f'{SAID} === "This is not the server\'s token."')
        await tab.call("Input.insertText", text="secret")
        await tab.key("Enter", 13, "\r")
        await tab.until("model !== null && document.getElementById('token').hidden")
        await drop(tab, files["<b>a cat.png"])
        await tab.until(ANSWERED)
        assert await tab.js("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]

    browse(steps)
