"""Draws the bundled subjects, assets/subjects: `python -m toybox.make_subjects [--output FOLDER]`.

Each is an instance of the dev table, which no training saw: photos 00.png to 04.png, their masks,
class.txt for the trainer, which says what can be seen, and instance.json for benchmarks that draw
the truth.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from toybox.captions import describe
from toybox.instances import instance
from toybox.world import Scene, draw

TABLE = "dev"
SUBJECTS: dict[str, tuple[str, int]] = {  # folder -> class, index in the table
    "dotted_mug": ("mug", 10),
    "striped_bird": ("bird", 12),
    "zigzag_robot": ("robot", 5),
}
# Places of the photos. Beach, jungle, snow, pink fabric and galaxy are left to the prompts.
PHOTO_CONTEXTS = (
    "on a wooden floor",
    "in the city",
    "by a brick wall",
    "on green grass",
    "on a purple rug",
)


def photo_scenes(table: str, class_name: str, index: int, first: int) -> list[Scene]:
    """Photos of an instance, one a place, each in another pose; their seeds count from `first`."""
    subject = instance(table, class_name, index)
    places = enumerate(PHOTO_CONTEXTS, start=first)
    return [Scene(subject, context, "photo", seed) for seed, context in places]


def write_subject(folder: Path, table: str, class_name: str, index: int, first: int) -> None:
    """Fills a folder with an instance's photos, as a user has them, and its instance.json."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)

    for number, scene in enumerate(photo_scenes(table, class_name, index, first)):
        picture = draw(scene)
        Image.fromarray(picture.image).save(folder / f"{number:02}.png", optimize=True)
        Image.fromarray(picture.mask).save(folder / "masks" / f"{number:02}.png", optimize=True)

    (folder / "class.txt").write_text(f"{class_name}\n")
    about = {"table": table, "class": class_name, "index": index}
    (folder / "instance.json").write_text(json.dumps(about) + "\n")


def write_bundled(folder: Path) -> None:
    """Fills the folder of a bundled subject, whose name is a key of SUBJECTS.

    Its class word says all that words can: what words say, the photos need not teach.
    """
    place = list(SUBJECTS).index(folder.name)
    class_name, index = SUBJECTS[folder.name]
    write_subject(folder, TABLE, class_name, index, first=100 * (1 + place))
    (folder / "class.txt").write_text(f"{describe(instance(TABLE, class_name, index))}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the bundled subjects.")
    parser.add_argument("--output", type=Path, default=Path("assets/subjects"), metavar="FOLDER")
    root = parser.parse_args().output
    for subject in SUBJECTS:
        write_bundled(root / subject)
