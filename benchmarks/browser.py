"""Debian's chromium without a window, for benchmarks of what people see, and for the tests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eqdiff.errors import require

# without these chromium asks for hosts of its maker at every start
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-dev-shm-usage"]
PATIENCE = 120_000  # milliseconds for its start; a busy machine needs a while
DESK = (1280, 900)  # pixels of a window


def chromium_path() -> str | None:
    """Where chromium is; None without one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Any]:
    """Within: a browser of playwright's. Raises UserError if chromium is not there."""
    path = chromium_path()
    require(path, "no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Any, patience: int = PATIENCE, size: tuple[int, int] = DESK) -> Any:
    """A page of a browser's own. patience: milliseconds for each thing that is waited for."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(patience)
    return page
