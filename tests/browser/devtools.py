"""A tab of a headless browser that a test works in as a person would, over the Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from tests.browser.conftest import CHROMIUM

_KEYS = {
    "Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowUp": (38, ""), "ArrowDown": (40, ""), " ": (32, " "),
}  # fmt: skip
_SHIFT = 8


class Connection:
    """Calls of the protocol, each answered before the next."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    def call(self, method: str, **params: Any) -> Any:
        """What a method of the protocol gives."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.take(message)

    def take(self, message: Any) -> None:
        """An event, told between call and answer."""


class Tab(Connection):
    """A tab; gathers what the page writes to the console, the errors it leaves uncaught, and what it fetches."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def take(self, message: Any) -> None:
        params = message["params"]
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message["method"] == "Runtime.consoleAPICalled":
            self.errors.append(str([argument.get("value") for argument in params["args"]]))
        elif message["method"] == "Log.entryAdded":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script: str, *, seconds: float = 30) -> None:
        """Go on as soon as an expression counts as true.

        Raises:
            AssertionError: It was not in time.
        """
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script} is not so; the page shows:\n{self.text('body')}"
            time.sleep(0.02)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str) -> None:
        """Press the mouse on what is at the middle of the first such element."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        x, y = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self._drawn()

    def write(self, text: str) -> None:
        """Insert a text where the focus is."""
        self.call("Input.insertText", text=text)
        self._drawn()

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": _SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)
        self._drawn()

    def _drawn(self) -> None:
        """Wait until the page shows what an input changed at once: nobody presses the next key within one frame."""
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def focused(self) -> str:
        """The accessible name, or else the text, of what has the focus."""
        return str(
            self.run("document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText.trim()")
        )

    def choose_files(self, selector: str, *files: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self._drawn()

    def media(self, **features: str) -> None:
        """What the page is told of the person's wishes: prefers_color_scheme="dark"."""
        given = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=given)

    def offline(self, *, cut: bool) -> None:
        self.call(
            "Network.emulateNetworkConditions", offline=cut, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A running browser, which makes tabs with nothing kept from others."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        with urlopen(f"{self._address}/json/version", timeout=60) as answer:
            self._control = json.load(answer)["webSocketDebuggerUrl"]

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """A tab with a profile of its own, gone at the end."""
        with connect(self._control, max_size=None, proxy=None) as socket:
            control = Connection(socket)
            context = control.call("Target.createBrowserContext")["browserContextId"]
            target = control.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
            address = f"{self._control.rsplit('/devtools/', 1)[0]}/devtools/page/{target}"
            with connect(address, max_size=None, proxy=None) as page:
                tab = Tab(page)
                tab.size(1280, 860)
                yield tab
            control.call("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def running_browser() -> Iterator[Browser]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield Browser(_port(Path(profile) / "DevToolsActivePort"))
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            process.kill()
            process.wait()


def _port(file: Path) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
