"""A grid of subjects x styles: pictures after training, and the truth below; nothing is picked.

    python -m studies.ablation.grid [--study NAME] [--variant NAME] [--subjects N] [--picture FILE]

Two rows a subject of the study's table. The first has a photo and the pictures of the study's
concept, from seed 0; the concept is trained if it is not there. The second has the truth, drawn by
the toybox in one pose of many. The prompts are the study's own.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eqdiff.base.load import load_base
from eqdiff.data.sheets import image_grid
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.places import ASSETS, BUNDLED_BASE
from studies.ablation.cells import Cell, concept, photos
from studies.ablation.instruments import FIRST_TRUTH
from studies.ablation.variants import STUDIES, Prompt, prompts, subjects
from toybox.instances import instance
from toybox.world import Scene, draw

UNSEEN = "on the beach"  # a place that no photo has


def first_of_each_style() -> list[Prompt]:
    """Of the study's prompts, a plain one in an unseen place and the first of each style."""
    first: dict[str, Prompt] = {}
    for prompt in prompts():
        if prompt.kind == "style" or prompt.context == UNSEEN:
            first.setdefault(prompt.style, prompt)
    return list(first.values())


def rows_of(cell: Cell, pictures: list[Image.Image], chosen: list[Prompt]) -> list[Image.Image]:
    """The two rows of a subject: a photo and the pictures, then a blank and the truth."""
    photo = Image.open(photos(cell) / "00.png").convert("RGB")
    blank = Image.new("RGB", photo.size, "white")
    subject = instance(cell.table, cell.class_name, cell.index)

    truths = [
        Image.fromarray(draw(Scene(subject, prompt.context, prompt.style, FIRST_TRUTH)).image)
        for prompt in chosen
    ]
    return [photo, *pictures, blank, *truths]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="baselines", choices=sorted(STUDIES))
    parser.add_argument("--variant", help="default: the one that the study compares others to")
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument(
        "--picture", type=Path, default=ASSETS / "pictures" / "grid.jpg", metavar="FILE"
    )
    args = parser.parse_args(argv)

    study = STUDIES[args.study]
    variant = args.variant or study.against
    chosen = first_of_each_style()
    texts = [prompt.text for prompt in chosen]
    seeds = [seed_of(0, text, 0) for text in texts]
    base = load_base(str(BUNDLED_BASE))
    pipe = EqDiffPipeline.of(base)

    images: list[Image.Image] = []
    captions: list[str] = []
    for class_name, index in subjects(args.subjects):
        cell = Cell(args.study, variant, class_name, index, 0, study.table)
        pipe.load_concept(str(concept(cell, study.variants[variant], base)))
        pictures = pipe(texts, seeds=seeds, **study.draw.get(variant, {})).images
        images += rows_of(cell, pictures, chosen)
        captions += ["a photo", *(text.replace("{}", "S") for text in texts)]
        captions += ["", *("truth" for _ in chosen)]

    args.picture.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=1 + len(chosen), captions=captions).save(args.picture, quality=90)


if __name__ == "__main__":
    main()
