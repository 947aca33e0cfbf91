"""A real headless Chromium for tests of pages, driven through chromedriver over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH"
)


@contextmanager
def open_browser(profile: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[Any]:
    """Headless Chromium behind chromedriver: a function of method, path and the fields of the body.

    size: of the window in pixels.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # a process group of its own: a driver that is stuck would leave its browser behind
    driver = subprocess.Popen(
        [str(CHROMEDRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, process_group=0
    )

    def send(method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=180) as reply:
            return json.load(reply)["value"]

    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        f"--window-size={size[0]},{size[1]}",
        f"--user-data-dir={profile}",
    ]
    options: dict[str, Any] = {
        "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    try:
        wait_for(lambda: _answers(port))
        session = send("POST", "/session", capabilities={"alwaysMatch": options})["sessionId"]
        yield lambda method, path, **body: send(method, f"/session/{session}{path}", **body)
        send("DELETE", f"/session/{session}")
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def execute(browser: Any, script: str) -> Any:
    """What a script of the test's returns in the page."""
    return browser("POST", "/execute/sync", script=script, args=[])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
