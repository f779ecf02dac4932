"""How soon the page in the browser answers a click, alone and while a training runs.

    python -m benchmarks.page [--clicks 20] [--json FILE]

It needs gradio, playwright and Debian's chromium. The training is a bundled subject on the toybox,
with the threads that the scripts choose. Three kinds of click: `a word` stops a job that is not
there, `a subject` opens a bundled one, both until their answer can be read; `its pictures` opens
one until its photos, under the masks that the server draws, can be seen. `load` is what the
machine did beside it before the first click.
"""

import argparse
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.browser import chromium, new_page
from benchmarks.common import RESULTS, ROOT, report
from eqdiff.errors import main_guard, require

NUMBERS = itertools.count(1000)  # of jobs that are not there
SUBJECTS = ("striped_bird", "dotted_mug")
PATIENCE = 300_000  # milliseconds; the first training makes its class images first
# address of the sheet's first picture, once it has pixels
FIRST_PICTURE = """(() => {
  const picture = document.querySelector("#sheet img");
  return picture && picture.complete && picture.naturalWidth ? picture.src : null;
})()"""
STARTS = 'source scripts/env.sh && eqdiff_threads && cd "$SITE" && exec "$PYTHON" "$@"'
NOTES = {"load": "processes that wanted a core in the minute before"}


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, default=20, help="of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as site, served(Path(site)) as url, chromium() as browser:
        times = measure(new_page(browser, PATIENCE), url, args.clicks)
    figures: dict[str, Any] = {"load": load}
    for state, kinds in times.items():
        for kind, seconds in kinds.items():
            figures[f"{state}, {kind}"] = {"median": median(seconds), "worst": max(seconds)}
    report("page", figures, args.json, notes=NOTES, more={"times": times}, results=args.results)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Within: the page as `bash scripts/app.sh` serves it, its outputs in `site`; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ["bash", "-c", STARTS, "bash", str(ROOT / "app" / "serve.py"), "--port", port]
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in threads}
    environment |= {"PYTHON": sys.executable, "SITE": str(site), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        require("open http" in server.stdout.readline(), "the server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def measure(page: Any, url: str, clicks: int) -> dict[str, dict[str, list[float]]]:
    """Seconds until each click is answered, alone and while a training runs."""
    page.goto(url)
    page.locator("#queue").wait_for()  # what is typed before may be lost
    page.get_by_role("tab", name="Teach", exact=True).click()
    alone = answers(page, clicks)

    page.locator("#start").click()
    job = page.locator("#teach-job")
    job.get_by_text(re.compile(r"training \d+ of")).first.wait_for()
    beside = answers(page, clicks)
    require("runs" in job.inner_text(), "the training ended before the last click; fewer --clicks")
    return {"alone": alone, "while a training runs": beside}


def answers(page: Any, clicks: int) -> dict[str, list[float]]:
    """Kind of click -> seconds until each of so many is answered."""
    kinds = {
        "a word": ask_for_a_word,
        "a subject": open_a_subject,
        "its pictures": see_a_subject,
    }
    return {kind: [timed(page, deed, n) for n in range(clicks)] for kind, deed in kinds.items()}


def timed(page: Any, deed: Callable[[Any, int], Callable[[], None]], number: int) -> float:
    """Seconds from a click to its answer. deed: goes up to the click, and returns the rest."""
    rest = deed(page, number)
    start = time.perf_counter()
    rest()
    return time.perf_counter() - start


def ask_for_a_word(page: Any, _: int) -> Callable[[], None]:
    number = next(NUMBERS)
    field = page.locator("#job-number input")
    field.fill(str(number))
    field.press("Tab")  # the page takes a number when its field is left

    def click() -> None:
        page.locator("#stop-job").click()
        page.locator("#queue-said").get_by_text(f"job {number} does not run").wait_for()

    return click


def open_a_subject(page: Any, number: int) -> Callable[[], None]:
    name = SUBJECTS[number % len(SUBJECTS)]
    page.locator("#subject input").click()
    option = page.get_by_role("option", name=name)
    option.wait_for()

    def click() -> None:
        option.click()
        page.locator("#teach-said").get_by_text(f"{name}: 5 photos").wait_for()

    return click


def see_a_subject(page: Any, number: int) -> Callable[[], None]:
    open_subject = open_a_subject(page, number)
    before = page.evaluate(FIRST_PICTURE)

    def click() -> None:
        open_subject()
        page.wait_for_function(f"before => ![null, before].includes({FIRST_PICTURE})", arg=before)

    return click


if __name__ == "__main__":
    sys.exit(main())
