"""How long gallery.html takes to open from disk with many pictures.

    python -m benchmarks.gallery [--pictures 200] [--side 512] [--rounds 5] [--json FILE]

It needs playwright and Debian's chromium. `in sight` is the time from the start of loading until
every picture in the window is drawn, `all` until each picture of the page has been decoded. Each
round opens the page in a browser of its own, so nothing is remembered. The pictures are noise over
a smooth ground, which takes more bytes than a photo does.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.browser import chromium, new_page
from benchmarks.common import RESULTS, report, spread
from eqdiff.errors import main_guard
from eqdiff.gallery.found import find_run
from eqdiff.gallery.page import PAGE, write_gallery
from eqdiff.ours import WRITTEN_BY, save_picture

SMOOTH = 16  # pixels of the ground, before it is made large
GRAIN = 12.0  # levels of noise over it
MANY = 600_000  # milliseconds for one page
IN_SIGHT = """async () => {
  const seen = [...document.images].filter((picture) => {
    const box = picture.getBoundingClientRect();
    return picture.src && box.width && box.top < innerHeight && box.bottom > 0;
  });
  await Promise.all(seen.map((picture) => picture.decode()));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [performance.now() / 1000, seen.length];
}"""
ALL = """async () => {
  const pictures = [...document.querySelectorAll(".card img")];
  pictures.forEach((picture) => { picture.loading = "eager"; });
  await Promise.all(pictures.map((picture) => picture.decode()));
  return [performance.now() / 1000, pictures.length];
}"""
NOTES = {"load": "processes that wanted a core in the minute before"}


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=5, help="how often the page is opened")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)

    times: dict[str, list[float]] = {"in sight [s]": [], "all [s]": []}
    with tempfile.TemporaryDirectory() as name:
        page = make_page(Path(name), args.pictures, args.side)
        size = page.stat().st_size / 2**20
        load = os.getloadavg()[0]
        for _ in range(args.rounds):
            for kind, seconds in zip(times, opened(page, args.pictures), strict=True):
                times[kind].append(seconds)
    figures = {"load": load, "page [MiB]": size, **spread(times)}
    report("gallery", figures, args.json, notes=NOTES, more={"times": times}, results=args.results)


def make_page(folder: Path, pictures: int, side: int) -> Path:
    """The page of a run of so many pictures, as test.sh writes it."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        file = f"images/{number:04d}.png"
        (folder / "images").mkdir(exist_ok=True)
        save_picture(grainy(random, side), folder / file)
        rows.append(
            {"file": file, "prompt": f"a {{}} on beach {number // 4}", "number": number % 4}
        )
    lines = [json.dumps({**row, **WRITTEN_BY}) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    write_gallery([find_run(folder)], folder / PAGE)
    return folder / PAGE


def grainy(random: np.random.Generator, side: int) -> Image.Image:
    """A smooth ground under noise, RGB."""
    ground = Image.fromarray(random.integers(0, 256, (SMOOTH, SMOOTH, 3), dtype=np.uint8))
    levels = np.asarray(ground.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    levels = levels + random.normal(0, GRAIN, (side, side, 1))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def opened(path: Path, pictures: int) -> tuple[float, float]:
    """Seconds until what is in sight is drawn, and until every picture is decoded."""
    with chromium() as browser:
        page: Any = new_page(browser, MANY)
        page.goto(path.as_uri(), wait_until="commit")
        page.locator("#count").get_by_text(f"{pictures} of {pictures} pictures").wait_for()
        in_sight, seen = page.evaluate(IN_SIGHT)
        every, found = page.evaluate(ALL)
    assert seen > 0, "no picture is in sight"
    assert found == pictures, found
    return in_sight, every


if __name__ == "__main__":
    sys.exit(main())
