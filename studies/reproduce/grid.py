"""A grid of subjects x styles: pictures after training, and the truth below; nothing is picked.

    python -m studies.reproduce.grid FOLDER --picture FILE [--method NAME] [--subjects N]

Two rows a subject. The first has the pictures of the method's first training: of its plain prompts
the first, of each other style the first. The second has the truth, drawn by the toybox in one pose
of many.
"""

import argparse
from collections.abc import Sequence

from PIL import Image

from eqdiff.data.sheets import image_grid
from eqdiff.errors import main_guard
from studies.reproduce.drawn import Drawn, add_arguments, cells_of, pictures_of
from toybox.truth import FIRST_SEED
from toybox.world import Scene, draw

QUALITY = 80  # of the JPEG


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
    add_arguments(parser, "EqDiff")
    parser.add_argument("--subjects", type=int, default=5)
    args = parser.parse_args(argv)

    images: list[Image.Image] = []
    captions: list[str] = []
    rows = [row for row in cells_of(args.folder, args.method) if row["seed"] == 0]
    for row in rows[: args.subjects]:
        chosen = first_of_each_style(list(pictures_of(args.folder, row, args.table)))
        images += [one.picture for one in chosen] + [truth(one) for one in chosen]
        captions += [one.row["prompt"].replace("{}", row["subject"]) for one in chosen]
        captions += ["truth"] * len(chosen)

    args.picture.parent.mkdir(parents=True, exist_ok=True)
    sheet = image_grid(images, columns=len(chosen), captions=captions)
    sheet.save(args.picture, quality=QUALITY)


if __name__ == "__main__":
    main()
