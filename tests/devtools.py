"""A page in a real browser: Chromium without a window, driven through the pipe of its DevTools protocol."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# The texts that a person sees without scrolling, line by line.
VISIBLE_TEXTS = """(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const node = walker.currentNode, text = node.textContent.trim();
    if (!text) continue;
    const range = document.createRange();
    range.selectNode(node);
    const box = range.getBoundingClientRect();
    const x = box.left + Math.min(box.width, 20) / 2, y = box.top + Math.min(box.height, 20) / 2;
    const shown = x >= 0 && y >= 0 && x < innerWidth && y < innerHeight && box.width && document.elementFromPoint(x, y);
    if (shown && (shown.contains(node) || node.parentElement.contains(shown))) {
      texts.push([Math.round(y / 6), x, text]);
    }
  }
  return texts.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((text) => text[2]);
})()"""


class Browser:
    """One page of Chromium.  A context manager.

    Args:
        profile: a new folder for its settings.
        size: of the window.
    """

    def __init__(self, profile, size=(1500, 950)):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def as_three_and_four():
            # Chromium reads commands from descriptor 3 and writes answers to 4.
            high_read, high_write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(high_read, 3)
            os.dup2(high_write, 4)

        command = [CHROMIUM, "--headless", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        command += [
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            "--disable-background-networking",
        ]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        self._process = subprocess.Popen(
            command,
            pass_fds=(3, 4, to_browser, from_browser),
            preexec_fn=as_three_and_four,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._write)
        os.close(self._read)

    def open(self, address: str, until: str, seconds: float = 90) -> list[str]:
        """Open a page and wait for a text; returns the texts on the first screen.

        Args:
            until: a text that the page shows when it is complete.
        """
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=address)
        deadline = time.monotonic() + seconds
        texts: list[str] = []
        while time.monotonic() < deadline:
            texts = self.evaluate(VISIBLE_TEXTS) or []
            if any(until in text for text in texts):
                return texts
            time.sleep(0.5)
        raise AssertionError(f"{address} never shows {until!r}, but {texts}")

    def evaluate(self, script: str):
        """The value of an expression in the page; None while it is loading."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _next_message(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            assert ready, "Chromium does not answer"
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
