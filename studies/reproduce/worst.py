"""The worst pictures of a method, by rule: the lowest in true identity, and the lowest in text.

    python -m studies.reproduce.worst FOLDER --picture FILE [--method NAME] [--count 24]

True identity is the share of the subject's drawn attributes that the judge names right; of equal
ones those with the smaller masked max-cosine come first. Text is first the place and the style that
the judge names, then CLIP-T. Below each picture stand its prompt and what went wrong, in the
judge's words. Nothing is chosen by hand.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eqdiff.data.sheets import image_grid
from eqdiff.errors import main_guard
from studies.reproduce.drawn import Drawn, add_arguments, cells_of, pictures_of
from studies.reproduce.measures import PARTS, judges
from toybox.dataset import to_tensor
from toybox.judge import UNKNOWN, VALUES, labels_of

COUNT = 24
COLUMNS = 8
PLACES = ("context", "style")


def lowest(pictures: Sequence[Drawn], count: int) -> dict[str, list[Drawn]]:
    """{"identity": ..., "text": ...}: the lowest of each, the worst first."""

    def text(one: Drawn) -> tuple[float, float]:
        return one.row["context"] + one.row["style"], one.row["clip_t"]

    def identity(one: Drawn) -> tuple[float, float]:
        return one.row["identity"], one.row["max_cosine"]

    return {
        "identity": sorted(pictures, key=identity)[:count],
        "text": sorted(pictures, key=text)[:count],
    }


def wrong(one: Drawn, names: Sequence[str]) -> str:
    """What the judge names wrong among these attributes: "colour blue, not yellow"."""
    size = judges().dino.config.image_size
    square = np.array(one.picture.resize((size, size)))
    with torch.no_grad():
        named = judges().name(to_tensor(square[None]))
    labels = dict(zip(VALUES, labels_of(one.subject, one.context, one.style), strict=True))
    faults = [
        f"{name} {VALUES[name][int(named[name][0])]}, not {VALUES[name][labels[name]]}"
        for name in names
        if labels[name] != UNKNOWN and int(named[name][0]) != labels[name]
    ]
    return "; ".join(faults) or f"nothing that the judge names (CLIP-T {one.row['clip_t']:.2f})"


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, default="EqDiff")
    parser.add_argument("--count", type=int, default=COUNT)
    args = parser.parse_args(argv)

    cells = cells_of(args.folder, args.method)
    pictures = [one for row in cells for one in pictures_of(args.folder, row, args.table)]
    for what, chosen in lowest(pictures, args.count).items():
        parts = PARTS if what == "identity" else PLACES
        captions = [f"{one.row['prompt']}: {wrong(one, parts)}" for one in chosen]
        sheet = image_grid([one.picture for one in chosen], columns=COLUMNS, captions=captions)
        target = beside(args.picture, what)
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target)
        for caption in captions:
            print(f"{what}: {caption}")


def beside(picture: Path, what: str) -> Path:
    """worst.png -> worst_identity.png."""
    return picture.with_stem(f"{picture.stem}_{what}")


if __name__ == "__main__":
    main()
