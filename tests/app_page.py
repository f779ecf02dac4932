"""The app as a process, and its page in a real browser, for tests."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import WIDE, Watched, chromium, require_browser
from helpers import ROOT, environment

PATIENCE = 600_000  # milliseconds; a busy machine imports torch for a minute
SHOTS = os.environ.get("EQDIFF_SHOTS")  # a folder for screenshots, for docs/app.md

# what gradio says of the hostile requests of test_app_guests.py
GRADIOS_OWN = ("gradio.exceptions.InvalidPathError: ",)


class App:
    """The server as a process, in a folder of its own."""

    def __init__(self, site: Path, *words: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.site = site
        self.url = f"http://127.0.0.1:{self.port}"
        env = environment(EQDIFF_CACHE=str(site / "cache"))
        env.pop("EQDIFF_BASE", None)
        command = [sys.executable, str(ROOT / "app" / "serve.py"), "--port", str(self.port), *words]
        self.log = (site / "server.log").open("wb")
        self.process = subprocess.Popen(
            command, cwd=site, env=env, stdout=self.log, stderr=subprocess.STDOUT
        )
        self._await_start()

    def _await_start(self) -> None:
        end = time.monotonic() + 300
        while "open http" not in self.said:
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.5)

    @property
    def said(self) -> str:
        return (self.site / "server.log").read_text(errors="replace")

    def close(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it leaves no server behind
            self.process.wait()
            pytest.fail(f"Ctrl-C did not end the server, which said:\n{self.said}")
        finally:
            self.log.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="no gradio: pip install -r requirements-app.txt")
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def app(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    require_browser()
    pytest.importorskip("gradio", reason="no gradio: pip install -r requirements-app.txt")
    site = tmp_path_factory.mktemp("site")
    served = App(site, "--pretrained_model_name_or_path", str(tiny_base))
    yield served
    assert served.close() == 0
    errors = re.findall(r"^[\w.]+(?:Error|Exception): .*", served.said, re.MULTILINE)
    assert not [line for line in errors if not line.startswith(GRADIOS_OWN)], served.said


def opened(browser: Any, app: App, size: tuple[int, int] = WIDE) -> Watched:
    watched = Watched(browser, size)
    watched.page.set_default_timeout(PATIENCE)
    watched.page.goto(app.url)
    watched.page.locator("#queue").wait_for()
    return watched


def shot(watched: Watched, name: str) -> None:
    if SHOTS:
        watched.page.screenshot(path=f"{SHOTS}/{name}.png")


def tab(watched: Watched, name: str) -> None:
    """Opens a tab; on a phone the last ones are behind a button."""
    shown = watched.page.get_by_role("tab", name=name, exact=True)
    if not shown.is_visible():
        watched.page.locator(".overflow-menu > button").first.click()
        shown = watched.page.locator(".overflow-dropdown button", has_text=name)
    shown.click()


def choose(watched: Watched, name: str) -> None:
    watched.page.locator("#subject input").click()
    watched.page.get_by_role("option", name=name).click()
    watched.page.locator("#teach-said").get_by_text("5 photos").wait_for()
    watched.page.locator("#sheet img").nth(4).wait_for()  # what is under the brush comes with it


def require_clean(watched: Watched, app: App) -> None:
    """No console error, no request to any other host."""
    assert watched.errors == [], watched.errors
    foreign = [url for url in watched.requests if not url.startswith((app.url, "about:"))]
    assert not foreign, foreign


def fill(watched: Watched, element: str, value: str) -> None:
    field = watched.page.locator(f"#{element} input, #{element} textarea").first
    field.fill(value)
    field.press("Tab")


def job_says(watched: Watched, element: str, words: str) -> None:
    watched.page.locator(f"#{element}").get_by_text(re.compile(words)).first.wait_for()
