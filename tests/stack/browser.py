"""A headless Chromium, driven over a pipe with the DevTools protocol; nothing to install beside the browser."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WIDTH, HEIGHT = 1600, 1000


class Browser:
    """``with Browser(folder) as browser: browser.picture(url, "text that shows it is drawn", path)``."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        options = f"--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run \
            --disable-background-networking --disable-component-update --window-size={WIDTH},{HEIGHT} \
            --user-data-dir={profile} --remote-debugging-pipe about:blank"
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec chromium {options} 3<&{to_browser} 4>&{from_browser}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._left = b""
        self._count = 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._write)
        os.close(self._read)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            block = os.read(self._read, 1 << 16)
            if not block:
                raise RuntimeError("chromium has ended; is it installed (scripts/install-chromium)?")
            self._left += block
        line, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (reply := self._message()).get("id") != self._count:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    def evaluate(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def resize(self, height: int) -> None:
        """Make the window higher, for a page that does not fit."""
        sizes = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **sizes)

    def click(self, element: str) -> None:
        """Click the first element of a CSS selector, where there is one."""
        self.evaluate(f"document.querySelector({element!r})?.click()")

    def fill(self, element: str, text: str) -> None:
        """Type into an input as React expects it: through the native setter, then an event."""
        self.evaluate(
            f"(() => {{ const input = document.querySelector({element!r});"
            "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set"
            f".call(input, {text!r}); input.dispatchEvent(new Event('input', {{bubbles: true}})) }})()"
        )

    def picture(self, url: str, drawn: str, path: Path, timeout_seconds: float = 60.0) -> str:
        """Open ``url``, wait until the expression ``drawn`` is true, write a PNG; returns the page's text."""
        self.open(url, drawn, path, timeout_seconds)
        return self.keep(path)

    def open(self, url: str, drawn: str, path: Path, timeout_seconds: float = 60.0) -> None:
        """Open ``url`` and wait until the expression ``drawn`` is true; ``path`` is for a picture of the failure."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        deadline = time.monotonic() + timeout_seconds
        while not self.evaluate(f"Boolean({drawn})"):
            if time.monotonic() > deadline:
                path.write_bytes(self._screenshot())
                text = self.evaluate("document.body.innerText")
                raise TimeoutError(f"{url} does not show what it should (see {path}): {drawn}\n{text}")
            time.sleep(0.3)
        self.click('[data-component-id="mlflow.assistant.chat_panel.close"]')

    def keep(self, path: Path) -> str:
        """Write a PNG of the page as it is now; returns its text."""
        time.sleep(2)  # charts draw themselves in; the picture is for people, no assertion hangs on this
        path.write_bytes(self._screenshot())
        return str(self.evaluate("document.body.innerText"))

    def _screenshot(self) -> bytes:
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])
