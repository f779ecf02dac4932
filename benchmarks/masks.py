"""How good the masks are that need no model: intersection over union with the true ones.

    python benchmarks/masks.py [--json FILE] [--picture FILE]   100 toybox photos, drawn with their masks
    python benchmarks/masks.py --data DIR ...                   real photos with masks/<stem>.png, per photo
    python benchmarks/masks.py --compare                        and what plain GrabCut and single photos give

The toybox photos are of 25 instances of the test table, 4 a subject, each in another of the ten places; the method was
set up on the dev table. Masks are made as a user makes them, from files. Exits 1 if the mean is below WANTED.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.data import image_grid, overlay  # noqa: E402
from eqdiff.grabcut import subject_masks  # noqa: E402
from eqdiff.mask_config import MaskConfig  # noqa: E402
from eqdiff.mask_maker import make_masks  # noqa: E402
from eqdiff.photos import find_mask, find_photos, load_mask, load_photo  # noqa: E402
from eqdiff.report import interval  # noqa: E402
from toybox.instances import CLASS_NAMES, instance  # noqa: E402
from toybox.world import CONTEXT_NAMES, Scene, draw  # noqa: E402

SUBJECTS, PHOTOS, WORST = 25, 4, 10
WANTED = 0.75  # mean over the toybox photos
COLOURS = MaskConfig(mask_maker="colours", overwrite=True)

Row = dict[str, Any]  # subject, photo, iou, and pictures: the photo, its true mask, ours


def write_subjects(folder: Path, table: str, count: int, seed: int) -> None:
    """Fills `folder` with subjects as a user has them: photos in several places, and the true masks in masks/."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name = CLASS_NAMES[number % len(CLASS_NAMES)]
        subject = folder / f"{number:02}_{name}"
        (subject / "masks").mkdir(parents=True)
        for place in rng.permutation(CONTEXT_NAMES)[:PHOTOS]:
            scene = Scene(instance(table, name, number), str(place), "photo", int(rng.integers(2**31)))
            picture, file = draw(scene), f"{place.replace(' ', '_')}.png"
            Image.fromarray(picture.image).save(subject / file)
            Image.fromarray(picture.mask).save(subject / "masks" / file)


def measure(subject: Path) -> list[Row]:
    """A row a photo that has a true mask; ours are made in a folder of their own, without looking at the true ones."""
    rows: list[Row] = []
    with TemporaryDirectory() as made:
        make_masks(subject, COLOURS, Path(made), word="subject", given=())
        for path in find_photos(subject):
            photo, true = load_photo(path), find_mask(subject / "masks", path.stem)
            if true is None:
                continue
            masks = [load_mask(file, photo) for file in (true, Path(made) / f"{path.stem}.png")]
            iou = overlap(*(np.asarray(mask) > 0 for mask in masks))
            rows.append({"subject": subject.name, "photo": path.name, "iou": iou, "pictures": (photo.image, *masks)})
    return rows


def overlap(truth: np.ndarray, ours: np.ndarray) -> float:
    """Intersection over union of two bool masks (H, W), one of them not empty."""
    return float((truth & ours).sum() / (truth | ours).sum())


def plain_grabcut(photo: np.ndarray) -> np.ndarray:
    """What a border alone gives: GrabCut, 5 rounds, from a frame of 5 % that is background."""
    labels = np.full(photo.shape[:2], cv2.GC_PR_FGD, np.uint8)
    edge = round(0.05 * max(labels.shape))
    labels[:edge] = labels[-edge:] = labels[:, :edge] = labels[:, -edge:] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    cv2.grabCut(photo, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    return (labels & 1).astype(bool)


def compare(rows: Sequence[Row]) -> None:
    """Prints the mean IoU of simpler ways on the same photos."""
    pairs = [(np.asarray(row["pictures"][0]), np.asarray(row["pictures"][1]) > 0) for row in rows]
    ways = {"plain GrabCut": plain_grabcut, "each photo alone": lambda photo: subject_masks([photo])[0]}
    for name, way in ways.items():
        print(f"{name}: {np.mean([overlap(truth, way(photo)) for photo, truth in pairs]):.3f}")


def draw_worst(rows: Sequence[Row], path: Path) -> None:
    """The rows as photo, truth and ours, the worst first, two a line."""
    cells, captions = [], []
    for row in rows:
        photo, truth, ours = row["pictures"]
        cells += [photo, overlay(photo, truth), overlay(photo, ours)]
        captions += [row["subject"], "truth", f"ours {row['iou']:.2f}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=6, captions=captions).save(path)


def toybox(json_path: Path | None, picture: Path | None, others: bool) -> bool:
    """Prints, writes and draws the figures of the toybox; whether they are as WANTED."""
    with TemporaryDirectory() as folder:
        write_subjects(Path(folder), "test", SUBJECTS, seed=0)
        started = time.process_time()
        subjects = [measure(subject) for subject in sorted(Path(folder).iterdir())]
        seconds = (time.process_time() - started) / (SUBJECTS * PHOTOS)
    rows = sorted((row for subject in subjects for row in subject), key=lambda row: row["iou"])
    # photos of one subject fail together: the interval is over subjects
    figures = interval([math.fsum(row["iou"] for row in subject) / len(subject) for subject in subjects])
    figures |= {"photos": len(rows), "median": float(np.median([row["iou"] for row in rows]))}
    print(f"mean IoU of {len(rows)} photos: {figures['mean']:.3f} ", end="")
    print(f"(95 % {figures['low']:.3f} to {figures['high']:.3f}, over {len(subjects)} subjects), ", end="")
    print(f"median {figures['median']:.3f}; {seconds:.2f} CPU seconds a photo; the worst {WORST}:")
    for row in rows[:WORST]:
        print(f"  {row['iou']:.3f}  {row['subject']}  {row['photo']}")
    if others:
        compare(rows)
    if picture is not None:
        draw_worst(rows[:WORST], picture)
    if json_path is not None:
        plain = [{name: row[name] for name in ("subject", "photo", "iou")} for row in rows]
        json_path.write_text(json.dumps({"mean_iou": figures, "worst_first": plain}, indent=1) + "\n")
    return figures["mean"] >= WANTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="folders of real photos with masks/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the toybox figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the worst toybox photos there")
    parser.add_argument("--compare", action="store_true", help="measure simpler ways on the toybox photos too")
    args = parser.parse_args()
    if not args.data:
        sys.exit(0 if toybox(args.json, args.picture, args.compare) else 1)
    for folder in args.data:
        rows = measure(folder)
        for row in rows:
            print(f"| {row['subject']} | {row['photo']} | {row['iou']:.3f} |")
        print(f"| {folder.name} | mean | {math.fsum(row['iou'] for row in rows) / len(rows):.3f} |")


if __name__ == "__main__":
    main()
