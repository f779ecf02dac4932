"""How soon the page in the browser answers a click, alone and while a training runs.

    python -m benchmarks.page [--clicks N] [--json FILE]

It needs gradio, playwright and Debian's chromium. A click stops a job that is not there, and
is answered when that is said. The training is a bundled subject on the toybox.
"""

import argparse
import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from benchmarks.common import ROOT
from eqdiff.errors import main_guard, require

PORT = 7891
NUMBERS = itertools.count(1000)  # of jobs that are not there
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
PATIENCE = 600_000  # milliseconds


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    browser = shutil.which("chromium")
    require(browser, "no chromium: apt-get install chromium")

    with tempfile.TemporaryDirectory() as site, sync_playwright() as playwright:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "app" / "serve.py"), "--port", str(PORT)],
            cwd=site,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            server.stdout.readline()  # it listens now
            page = playwright.chromium.launch(executable_path=browser, args=FLAGS).new_page()
            page.set_default_timeout(PATIENCE)
            figures = measure(page, args.clicks)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()

    for name, seconds in figures.items():
        print(f"{name}: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


def measure(page: Any, clicks: int) -> dict[str, list[float]]:
    """Seconds until each click is answered, alone and while a training runs."""
    page.goto(f"http://127.0.0.1:{PORT}")
    alone = answers(page, clicks)

    page.get_by_role("tab", name="Teach", exact=True).click()
    page.locator("#subject input").click()
    page.get_by_role("option", name="dotted_mug").click()
    page.locator("#teach-said").get_by_text("5 photos").wait_for()
    page.locator("#start").click()
    page.locator("#teach-job").get_by_text("training").first.wait_for()
    return {"alone": alone, "while a training runs": answers(page, clicks)}


def answers(page: Any, clicks: int) -> list[float]:
    """Seconds until each of so many clicks is answered."""
    took = []
    for _ in range(clicks):
        number = next(NUMBERS)
        page.locator("#job-number input").fill(str(number))
        start = time.perf_counter()
        page.locator("#stop-job").click()
        page.locator("#queue-said").get_by_text(f"job {number} does not run").wait_for()
        took.append(time.perf_counter() - start)
    return took


if __name__ == "__main__":
    main()
