"""A real browser for tests: Debian's chromium, driven by playwright; what a page must not do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import browser
from benchmarks.browser import chromium_path

WIDE, NARROW = browser.DESK, (390, 844)  # pixels: a desk's window, a phone's


def require_browser() -> None:
    """Skips the test by the name of what is missing."""
    pytest.importorskip("playwright", reason="no playwright: pip install playwright")
    if chromium_path() is None:
        pytest.skip("no chromium: apt-get install chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser. Skips the test by the name of what is missing."""
    require_browser()
    with browser.chromium() as opened:
        yield opened


class Watched:
    """A page whose console errors and requests are kept.

    errors: what its console or its scripts complained of. requests: every address asked for, but
    for data in the page.
    """

    def __init__(self, opened: Any, size: tuple[int, int], **options: Any) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.page = opened.new_page(viewport=viewport, **options)
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", lambda request: self._ask(request.url))

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _ask(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.requests.append(url)

    def width_of_all(self) -> int:
        """How wide the page's content is [pixels]; more than the window's is scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth")


def require_text(element: Any, *texts: str) -> None:
    """Fails unless an element comes to show these texts.

    A card that the browser has not laid out yet shows none (content-visibility), so this waits.
    """
    from playwright.sync_api import expect

    element.scroll_into_view_if_needed()
    for text in texts:
        expect(element).to_contain_text(text, use_inner_text=True, timeout=60_000)
