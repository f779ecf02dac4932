"""How good the masks are that are made offline: intersection over union with the true ones.

    python -m studies.quality.masks [--json FILE] [--picture FILE]    100 toybox photos
    python -m studies.quality.masks --compare                         simpler ways beside it
    python -m studies.quality.masks --data DIR ...                   real photos with masks/

The toybox photos are of 25 instances of the test table, 4 a subject, each in another of the ten
places; the method was set up on the dev table. Masks are made as a user makes them, from files.
Exits 1 if the mean is below LEAST.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from PIL import Image

from eqdiff.data.folder import find_mask, find_photos, load_mask, load_photo
from eqdiff.data.sheets import image_grid, overlay
from eqdiff.evaluation.report import interval
from eqdiff.masks.make import make_masks
from eqdiff.masks.salient import subject_masks
from eqdiff.settings.masks import MaskConfig
from toybox.instances import CLASS_NAMES, instance
from toybox.world import CONTEXT_NAMES, Scene, draw

SUBJECTS = 25
PHOTOS = 4  # of each subject
WORST = 10  # photos that are listed and drawn
LEAST = 0.75  # mean over the toybox photos
OFFLINE = MaskConfig(mask_maker="colours", overwrite=True)

Row = dict[str, Any]  # subject, photo, iou, and pictures: the photo, its true mask, ours


def write_subjects(folder: Path, table: str, count: int, seed: int) -> None:
    """Fills a folder with subjects as a user has them: photos in several places, and masks/."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name = CLASS_NAMES[number % len(CLASS_NAMES)]
        subject = folder / f"{number:02}_{name}"
        (subject / "masks").mkdir(parents=True)

        for place in rng.permutation(CONTEXT_NAMES)[:PHOTOS]:
            pose = int(rng.integers(2**31))
            picture = draw(Scene(instance(table, name, number), str(place), "photo", pose))
            file = f"{place.replace(' ', '_')}.png"
            Image.fromarray(picture.image).save(subject / file)
            Image.fromarray(picture.mask).save(subject / "masks" / file)


def measure(subject: Path) -> list[Row]:
    """A row a photo that has a true mask.

    Ours are made in a folder of their own, without a look at the true ones.
    """
    rows: list[Row] = []
    with TemporaryDirectory() as made:
        make_masks(subject, OFFLINE, Path(made), word="subject", given=())
        for path in find_photos(subject):
            true = find_mask(subject / "masks", path)
            if true is None:
                continue

            photo = load_photo(path)
            masks = [load_mask(file, photo) for file in (true, Path(made) / f"{path.stem}.png")]
            row = {"subject": subject.name, "photo": path.name}
            row["iou"] = overlap(*(np.asarray(mask) > 0 for mask in masks))
            rows.append({**row, "pictures": (photo.image, *masks)})
    return rows


def overlap(truth: np.ndarray, ours: np.ndarray) -> float:
    """Intersection over union of two bool masks (H,W), one of them not empty: 0 to 1."""
    return float((truth & ours).sum() / (truth | ours).sum())


def plain_grabcut(photo: np.ndarray) -> np.ndarray:
    """The mask from a border alone: GrabCut, 5 rounds, a frame of 5 % that is background."""
    labels = np.full(photo.shape[:2], cv2.GC_PR_FGD, np.uint8)
    edge = round(0.05 * max(labels.shape))
    for frame in (labels[:edge], labels[-edge:], labels[:, :edge], labels[:, -edge:]):
        frame[:] = cv2.GC_BGD

    cv2.setRNGSeed(0)
    background = np.zeros((1, 65))
    foreground = np.zeros((1, 65))
    cv2.grabCut(photo, labels, None, background, foreground, 5, cv2.GC_INIT_WITH_MASK)
    return (labels & 1).astype(bool)


def compare(rows: Sequence[Row]) -> None:
    """Prints the mean IoU of simpler ways on the same photos."""
    photos = [np.asarray(row["pictures"][0]) for row in rows]
    truths = [np.asarray(row["pictures"][1]) > 0 for row in rows]
    ways = {
        "plain GrabCut": plain_grabcut,
        "each photo alone": lambda photo: subject_masks([photo])[0],
    }
    for name, way in ways.items():
        overlaps = [overlap(truth, way(photo)) for photo, truth in zip(photos, truths, strict=True)]
        print(f"{name}: {np.mean(overlaps):.3f}")


def draw_worst(rows: Sequence[Row], path: Path) -> None:
    """Draws photo, truth and ours of each row, two rows a line."""
    cells: list[Image.Image] = []
    captions: list[str] = []
    for row in rows:
        photo, truth, ours = row["pictures"]
        cells += [photo, overlay(photo, truth), overlay(photo, ours)]
        captions += [row["subject"], "truth", f"ours {row['iou']:.2f}"]

    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=6, captions=captions).save(path)


def measure_toybox() -> tuple[dict[str, Any], list[Row], float]:
    """Mean IoU with its interval, the rows from the worst on, and the CPU seconds a photo."""
    with TemporaryDirectory() as folder:
        write_subjects(Path(folder), "test", SUBJECTS, seed=0)
        started = time.process_time()
        subjects = [measure(subject) for subject in sorted(Path(folder).iterdir())]
        seconds = (time.process_time() - started) / (SUBJECTS * PHOTOS)
    rows = sorted((row for subject in subjects for row in subject), key=lambda row: row["iou"])

    # photos of one subject fail together: the interval is over subjects
    figures = interval([mean_iou(subject) for subject in subjects])
    figures |= {"photos": len(rows), "median": float(np.median([row["iou"] for row in rows]))}
    return figures, rows, seconds


def mean_iou(rows: Sequence[Row]) -> float:
    return math.fsum(row["iou"] for row in rows) / len(rows)


def toybox(json_path: Path | None, picture: Path | None, others: bool) -> bool:
    """Prints, writes and draws the figures of the toybox; whether their mean is LEAST or more."""
    figures, rows, seconds = measure_toybox()
    bounds = f"95 % {figures['low']:.3f} to {figures['high']:.3f}, over {SUBJECTS} subjects"
    print(f"mean IoU of {len(rows)} photos: {figures['mean']:.3f} ({bounds})")
    print(f"median {figures['median']:.3f}; {seconds:.2f} CPU seconds a photo")
    print(f"the worst {WORST}:")
    for row in rows[:WORST]:
        print(f"  {row['iou']:.3f}  {row['subject']}  {row['photo']}")

    if others:
        compare(rows)
    if picture is not None:
        draw_worst(rows[:WORST], picture)
    if json_path is not None:
        plain = [{name: row[name] for name in ("subject", "photo", "iou")} for row in rows]
        record = {"mean_iou": figures, "worst_first": plain}
        json_path.write_text(json.dumps(record, indent=1) + "\n")
    return figures["mean"] >= LEAST


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="real photos, masks/")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the toybox's figures there"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the worst photos there")
    parser.add_argument("--compare", action="store_true", help="measure simpler ways too")
    args = parser.parse_args(argv)

    if not args.data:
        return 0 if toybox(args.json, args.picture, args.compare) else 1
    for folder in args.data:
        rows = measure(folder)
        for row in rows:
            print(f"| {row['subject']} | {row['photo']} | {row['iou']:.3f} |")
        print(f"| {folder.name} | mean | {mean_iou(rows):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
