"""A grid of subjects x styles: pictures after training, and the truth below; nothing is picked.

    python -m studies.reproduce.grid FOLDER --picture FILE [--method NAME [NAME ...]] [--subjects N]

A row a method and subject has the pictures of the method's first training: of its plain prompts
the first, of each other style the first. Below a subject's rows is the truth, drawn by the toybox
in one pose of many.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eqdiff.data.sheets import image_grid
from eqdiff.errors import main_guard, require
from studies.reproduce.cell import Row
from studies.reproduce.drawn import Drawn, add_arguments, cells_of, pictures_of
from toybox.truth import FIRST_SEED
from toybox.world import Scene, draw

QUALITY = 80  # of the JPEG


def first_trainings(folder: Path, method: str) -> dict[str, Row]:
    """Subject -> the row of the method's first training on it.

    Raises UserError if there is none.
    """
    return {row["subject"]: row for row in cells_of(folder, method) if row["seed"] == 0}


def first_of_each_style(pictures: Sequence[Drawn]) -> list[Drawn]:
    """A picture a style, the first of each."""
    first: dict[str, Drawn] = {}
    for one in pictures:
        first.setdefault(one.style, one)
    return list(first.values())


def truth(one: Drawn) -> Image.Image:
    """What a picture is to show, drawn."""
    return Image.fromarray(draw(Scene(one.subject, one.context, one.style, FIRST_SEED)).image)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, nargs="+", default=["EqDiff"])
    parser.add_argument("--subjects", type=int, default=5)
    args = parser.parse_args(argv)

    rows = {name: first_trainings(args.folder, name) for name in args.method}
    shared = [name for name in rows[args.method[0]] if all(name in each for each in rows.values())]
    require(shared, f"{args.folder}: no subject that all of these methods have")
    images: list[Image.Image] = []
    captions: list[str] = []
    for subject in shared[: args.subjects]:
        for method, of_subject in rows.items():
            pictures = list(pictures_of(args.folder, of_subject[subject], args.table))
            chosen = first_of_each_style(pictures)
            images += [one.picture for one in chosen]
            captions += [method] * len(chosen)
        images += [truth(one) for one in chosen]
        captions += [one.row["prompt"].replace("{}", subject) for one in chosen]

    args.picture.parent.mkdir(parents=True, exist_ok=True)
    sheet = image_grid(images, columns=len(chosen), captions=captions)
    sheet.save(args.picture, quality=QUALITY)


if __name__ == "__main__":
    main()
