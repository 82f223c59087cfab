"""Headless Chromium, driven over the DevTools protocol through a pipe: no port, no library."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import require_tool, wait_for

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)

_HAS_GONE = "Inspected target navigated or closed"
"""What Chromium says of an expression that it had not evaluated when the page loaded again."""

_LOW_CONTRASTS = """(() => {
    const parts = color => color.match(/[0-9.]+/g).map(
        (part, place) => Number(part) * (place < 3 && color.startsWith('color(srgb') ? 255 : 1));
    const light = color => parts(color).slice(0, 3).map(part => part / 255).map(
        part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
    ).reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
    const under = element => {
        const color = element ? getComputedStyle(element).backgroundColor : 'rgb(255, 255, 255)';
        return parts(color)[3] === 0 ? under(element.parentElement) : color;
    };
    const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
        if (!text || !element.checkVisibility() || element.closest('noscript')) continue;
        const style = getComputedStyle(element);
        const ink = element instanceof SVGElement ? style.fill : style.color;
        const [low, high] = [light(ink), light(under(element))].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < 4.5) found.push([text, ink, under(element), contrast]);
    }
    return found})()"""


class Page:
    """One page of a running browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        """Addresses that pages asked for, data URIs aside."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")
        self._call("Network.enable")

    def open(self, page: Path | str, *, width: int, height: int, dark: bool = False) -> None:
        """Load a file, or an address, in a window of `width` × `height` CSS pixels."""
        self.resize(width=width, height=height, dark=dark)
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self._call("Page.navigate", url=url)
        # Its events may come before the answer, and those of the page before after it.
        wait_for(lambda: self.evaluate("document.readyState") == "complete", f"{url} in full")

    def resize(self, *, width: int, height: int, dark: bool = False) -> None:
        """Give the window of the page that is open another size and scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, in the next one if it has just gone."""
        answer = self._answer("Runtime.evaluate", expression=expression, returnByValue=True)
        while _HAS_GONE in answer.get("error", {}).get("message", ""):
            answer = self._answer("Runtime.evaluate", expression=expression, returnByValue=True)
        answer = _result(answer)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def low_contrasts(self) -> list[Any]:
        """Texts whose contrast is below the 4.5 of WCAG AA, each with what it is.

        The background is that of the innermost element that has one, all of one colour.
        """
        found: list[Any] = self.evaluate(_LOW_CONTRASTS)
        return found

    def screenshot(self) -> npt.NDArray[np.uint8]:
        """The whole page, uint8 H×W×3."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        with Image.open(io.BytesIO(base64.b64decode(answer["data"]))) as image:
            return np.asarray(image.convert("RGB"))

    def printed(self) -> bytes:
        """The page as a PDF, on paper as its style says."""
        answer = self._call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    def emulate_print(self) -> None:
        """Lay the page out as for a printer, on a screen as wide as before, and light."""
        scheme = {"name": "prefers-color-scheme", "value": "light"}
        self._call("Emulation.setEmulatedMedia", media="print", features=[scheme])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return _result(self._answer(method, **parameters))

    def _answer(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._receive()).get("id") != self._number:
            pass
        return message

    def _receive(self) -> dict[str, Any]:
        """The next message of the browser."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            assert ready, f"Chromium has not answered for {DEADLINE_SECONDS} s"
            block = os.read(self._answers, 1 << 20)
            assert block, "Chromium has closed the pipe"
            self._pending += block
        line, self._pending = self._pending.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        return message


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    assert "error" not in answer, answer
    result: dict[str, Any] = answer["result"]
    return result


@contextlib.contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """Start Chromium with a profile of its own, and end it afterwards."""
    chromium = require_tool("chromium")
    command_end, commands = _high_pipe()
    answers, answer_end = _high_pipe()
    # Chromium reads commands from descriptor 3 and answers on 4; the shell puts them there.
    script = f'exec "$@" 3<&{command_end} 4>&{answer_end}'
    browser = subprocess.Popen(
        ["bash", "-c", script, "bash", chromium, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(command_end, answer_end),
        stderr=subprocess.DEVNULL,
    )
    os.close(command_end)
    os.close(answer_end)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)  # with its pipe closed, Chromium ends in good order
        os.close(answers)
        try:
            browser.wait(timeout=10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()


def _high_pipe() -> tuple[int, int]:
    """A pipe whose descriptors are not 3 and 4."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
