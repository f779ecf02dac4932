"""The folder of a sampling run: images/, manifest.jsonl, grid.png.

A run writes into drawing.partial/ until its last image is there, and then moves everything into
place. A run that is killed leaves the previous images, manifest and grid as they were. Images that
the previous manifest names and the new one does not are removed then; other files in images/ stay.
What is not ours (see `ours`) is replaced only on request.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from eqdiff.data.folder import load_photo
from eqdiff.data.sheets import image_grid
from eqdiff.errors import UserError
from eqdiff.files import move, replacing
from eqdiff.ours import entries, is_manifest, is_picture, is_row, misplaced, remove, save_picture
from eqdiff.settings.options import WRITTEN_BY
from eqdiff.settings.prompts import short
from eqdiff.settings.sample import Job
from eqdiff.tokens import plain

DRAWING = "drawing.partial"
IMAGES = "images"
MANIFEST = "manifest.jsonl"
GRID = "grid.png"
GRID_PIXELS = 2**25  # of all images of a grid: 128 of 512 x 512; beyond that they are shown smaller
COLUMNS = 4  # of a grid, at most

# the names of what we write into DRAWING
OURS_IN_DRAWING = re.compile(
    r"\d{4,}-[A-Za-z0-9-]*\.png|\d{6,}\.json|manifest\.jsonl(\.partial)?|grid\.png"
)
# the paths that a manifest of ours may name
OURS_IN_MANIFEST = re.compile(r"images/(\d{4,}-[A-Za-z0-9-]*\.png)")


def require_ours(folder: Path, jobs: Sequence[Job], *, overwrite: bool) -> None:
    """Raises UserError naming the first thing that is not ours where a run of `jobs` writes.

    overwrite: strangers' files may lie at the names that the run writes. In DRAWING, which is
    cleared, they may not.
    """
    wrong = _misplaced(folder, jobs)
    if wrong:
        raise UserError(
            f"{wrong}: in the way, pictures are drawn there; move it away, "
            "or give another --output_dir"
        )

    strange = [
        path
        for path in entries(folder / DRAWING)
        if path.is_dir() or not OURS_IN_DRAWING.fullmatch(path.name)
    ]
    stray = strange[0] if strange else None
    if not strange and not overwrite:
        stray = _stray(folder, jobs)
    if stray:
        anew = "" if strange else ", or add --overwrite"
        raise UserError(
            f"{stray}: not written by EqDiff, so it stays; move it, give another --output_dir{anew}"
        )


def _misplaced(folder: Path, jobs: Sequence[Job]) -> Path | None:
    """The first file where a run needs a folder, or folder where it needs a file."""
    wrong = misplaced(folder, (IMAGES, DRAWING), (MANIFEST, GRID))
    if wrong:
        return wrong
    images = [folder / IMAGES / job.file for job in jobs]
    return next((image for image in images if image.is_dir()), None)


def _stray(folder: Path, jobs: Sequence[Job]) -> Path | None:
    """The first thing that is not ours at a name that a run writes.

    Early versions put no mark into images: those are recognised by a manifest of that time.
    """
    manifest = folder / MANIFEST
    if manifest.exists() and not is_manifest(manifest):
        return manifest

    known = _images_of(manifest) | _images_of(folder / DRAWING / MANIFEST)
    before_marks = not all(known.values())
    grid = folder / GRID
    if grid.exists() and not (before_marks or is_picture(grid)):
        return grid

    strays = _strays_in_drawing(folder / DRAWING)
    strays += _strays_in_images(folder / IMAGES, jobs, known)
    return next(iter(strays), None)


def _strays_in_drawing(drawing: Path) -> list[Path]:
    """What is not ours in the folder of a run that was killed.

    A row of ours shows that such a run wrote the folder: the rest, perhaps torn, is then ours too.
    """
    files = [path for path in entries(drawing) if path.stat().st_size]
    rows = [path for path in files if path.suffix == ".json" and is_manifest(path)]
    if rows:
        return []
    return [path for path in files if not (is_picture(path) or is_manifest(path))]


def _strays_in_images(images: Path, jobs: Sequence[Job], known: Mapping[str, bool]) -> list[Path]:
    """What is not ours at the jobs' names. known: see `_images_of`.

    Without a manifest of ours the folder is a stranger's, and so is everything in it.
    """
    if known:
        paths = [images / job.file for job in jobs]
        present = [path for path in paths if path.exists()]
    else:
        present = entries(images)
    return [path for path in present if known.get(path.name, True) and not is_picture(path)]


def make_folder(folder: Path) -> None:
    """Makes the output folder. Raises UserError if it cannot be written."""
    try:
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give another --output_dir"
        ) from None


def start_run(folder: Path) -> None:
    """Removes what a killed run left. If it was killed while moving its images, it is finished."""
    drawing = folder / DRAWING
    if (drawing / MANIFEST).is_file() and is_manifest(drawing / MANIFEST):
        _move(folder)
    _clear(drawing)
    drawing.mkdir(exist_ok=True)  # it may be a link, or hold a hidden file of somebody's


def _clear(drawing: Path) -> None:
    """Removes our files from DRAWING, and DRAWING too if it is then empty and no link."""
    for path in entries(drawing):
        if OURS_IN_DRAWING.fullmatch(path.name):
            remove(path)
    if not drawing.is_symlink():
        remove(drawing)


def save_image(folder: Path, job: Job, image: Image.Image, facts: Mapping[str, Any]) -> None:
    """Writes an image of this run and its line of the manifest."""
    drawing = folder / DRAWING
    save_picture(image, drawing / job.file)
    row = {"file": f"{IMAGES}/{job.file}", "prompt": job.prompt, **facts, **WRITTEN_BY}
    _row_file(drawing, job).write_text(json.dumps(row), encoding="utf-8")


def _row_file(drawing: Path, job: Job) -> Path:
    """The file of a job's line of the manifest."""
    return drawing / f"{job.index:06d}.json"


def finish(folder: Path, jobs: Sequence[Job], word: str) -> list[dict[str, Any]]:
    """Puts all processes' images of this run in place, in the order of the jobs.

    word: the class word, which captions of the grid shorten. Returns the manifest's rows.
    """
    drawing = folder / DRAWING
    lines = [_row_file(drawing, job).read_text(encoding="utf-8") for job in jobs]
    captions = [plain(job.prompt, word, short(word)) for job in jobs]
    grid = _grid([drawing / job.file for job in jobs], captions)
    save_picture(grid, drawing / GRID)
    with replacing(drawing / MANIFEST) as beside:
        beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    _move(folder)
    with suppress(OSError):
        _clear(drawing)
    return [json.loads(line) for line in lines]


def _move(folder: Path) -> None:
    """Moves a finished run into place, the manifest last. It may be repeated after a kill."""
    drawing = folder / DRAWING
    previous = _images_of(folder / MANIFEST)
    new = _images_of(drawing / MANIFEST)

    for name in new:
        if (drawing / name).is_file():
            move(drawing / name, folder / IMAGES / name)
    if (drawing / GRID).is_file():
        move(drawing / GRID, folder / GRID)
    move(drawing / MANIFEST, folder / MANIFEST)

    for name in previous.keys() - new.keys():
        image = folder / IMAGES / name
        if not previous[name] or is_picture(image):  # somebody may have put another in its place
            remove(image)


def _images_of(manifest: Path) -> dict[str, bool]:
    """The names of the images in a manifest's rows of ours, and whether each has a mark.

    Of a broken manifest it is what can be read; without a manifest nothing.
    """
    if not manifest.is_file():
        return {}

    images = {}
    for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            match = OURS_IN_MANIFEST.fullmatch(row["file"]) if is_row(row) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if match:
            images[match.group(1)] = WRITTEN_BY.items() <= row.items()
    return images


def _grid(files: Sequence[Path], prompts: Sequence[str]) -> Image.Image:
    """A grid of image files, captioned, of at most GRID_PIXELS in all."""
    width, height = load_photo(files[0]).size
    share = min(1.0, math.sqrt(GRID_PIXELS / (len(files) * width * height)))
    largest = (max(16, int(width * share)), max(16, int(height * share)))

    images = [_thumbnail(file, largest) for file in files]
    return image_grid(images, columns=min(COLUMNS, len(files)), captions=prompts)


def _thumbnail(file: Path, largest: tuple[int, int]) -> Image.Image:
    """The image, at most as large as `largest` [pixels]."""
    image = load_photo(file).image
    image.thumbnail(largest)
    return image
