"""The folder of drawn pictures: images/, manifest.jsonl, grid.png.

All of a run lies in drawing.partial/ until its last picture is there, and is then moved into its place: a run that is
killed leaves the former pictures, manifest and grid as they were. Pictures that the former manifest names and the new
one does not are removed then; other files in images/ stay.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eqdiff.config import UserError
from eqdiff.data import image_grid
from eqdiff.sample_config import Job

DRAWING, MANIFEST, GRID = "drawing.partial", "manifest.jsonl", "grid.png"
OURS = re.compile(r"images/(\d{4,}-[A-Za-z0-9-]*\.png)")  # what a manifest names, and no other path
GRID_PIXELS = 2**25  # of all pictures of a grid together, 128 of 512 x 512; beyond that they are shown smaller


def make_folder(folder: Path) -> None:
    """UserError: it cannot be written."""
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --output_dir") from None


def begin(folder: Path) -> None:
    """Clears away what a killed run left; one killed while its pictures were moved is finished first."""
    if (folder / DRAWING / MANIFEST).is_file():
        _move(folder)
    shutil.rmtree(folder / DRAWING, ignore_errors=True)
    (folder / DRAWING).mkdir()


def keep(folder: Path, job: Job, image: Image.Image, facts: Mapping[str, Any]) -> None:
    """Writes a picture of this run and its manifest line."""
    image.save(folder / DRAWING / job.file)
    row = {"file": f"images/{job.file}", "prompt": job.prompt, **facts}
    (folder / DRAWING / f"{job.index:06d}.json").write_text(json.dumps(row), encoding="utf-8")


def finish(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Puts all processes' pictures of this run in place, in the order of the jobs; the manifest's rows."""
    drawing = folder / DRAWING
    lines = [(drawing / f"{job.index:06d}.json").read_text(encoding="utf-8") for job in jobs]
    _grid([drawing / job.file for job in jobs], [job.prompt for job in jobs]).save(drawing / GRID)
    beside = drawing / f"{MANIFEST}.partial"
    beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(beside, drawing / MANIFEST)
    _move(folder)
    shutil.rmtree(drawing, ignore_errors=True)
    return [json.loads(line) for line in lines]


def _move(folder: Path) -> None:
    """Everything of a finished run into its place, the manifest last; may be done again where it was broken off."""
    drawing = folder / DRAWING
    former, new = _pictures(folder / MANIFEST), _pictures(drawing / MANIFEST)
    for name in new:
        if (drawing / name).is_file():
            os.replace(drawing / name, folder / "images" / name)
    if (drawing / GRID).is_file():
        os.replace(drawing / GRID, folder / GRID)
    os.replace(drawing / MANIFEST, folder / MANIFEST)
    for name in set(former) - set(new):
        (folder / "images" / name).unlink(missing_ok=True)


def _pictures(manifest: Path) -> list[str]:
    """Names of the pictures of ours that a manifest names; of none or a broken one what can be read."""
    names = []
    for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines() if manifest.is_file() else ():
        try:
            found = OURS.fullmatch(json.loads(line)["file"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        names += [found.group(1)] if found else []
    return names


def _grid(files: Sequence[Path], prompts: Sequence[str]) -> Image.Image:
    with Image.open(files[0]) as first:
        width, height = first.size
    share = min(1.0, math.sqrt(GRID_PIXELS / (len(files) * width * height)))
    most = (max(16, int(width * share)), max(16, int(height * share)))
    captions = [prompt.replace("{}", "S") for prompt in prompts]
    return image_grid([_small(file, most) for file in files], columns=min(4, len(files)), captions=captions)


def _small(file: Path, most: tuple[int, int]) -> Image.Image:
    with Image.open(file) as image:
        image.load()  # the file is closed at once: a thousand open ones are more than a process may have
        image.thumbnail(most)
        return image
