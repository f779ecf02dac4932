"""Draws teaser.png: two photos of each bundled subject, then prompts that no photo shows.

    python -m assets.pictures.teaser [--work DIR]

Seed 0, nothing picked. Subjects whose concepts are not under DIR are trained there first.
"""

import argparse
from pathlib import Path

from PIL import Image

from eqdiff.base.load import load_base
from eqdiff.data.sheets import image_grid
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.places import ASSETS, BUNDLED_BASE
from studies.quality.subjects import WORK, bundled_subjects, train

PROMPTS = (
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a pencil sketch of a {} in the snow",
    "a neon drawing of a {} by a brick wall",
    "a mosaic of a {} on pink fabric",
    "a watercolor painting of a {} on green grass",
)


def pictures(
    pipe: EqDiffPipeline, subject: Path, work: Path
) -> tuple[list[Image.Image], list[str]]:
    """A row of the teaser, and what stands below its pictures."""
    pipe.load_concept(train(subject, work))
    photos = [Image.open(subject / f"{number:02}.png").convert("RGB") for number in (0, 1)]
    seeds = [seed_of(0, prompt, 0) for prompt in PROMPTS]
    drawn = pipe(list(PROMPTS), seeds=seeds).images

    word = (subject / "class.txt").read_text(encoding="utf-8").strip()
    prompts = [prompt.replace("{}", word) for prompt in PROMPTS]
    return [*photos, *drawn], ["a photo", "a photo", *prompts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="of the concepts")
    args = parser.parse_args()

    pipe = EqDiffPipeline.of(load_base(str(BUNDLED_BASE)))
    cells: list[Image.Image] = []
    captions: list[str] = []
    for subject in bundled_subjects():
        row, below = pictures(pipe, subject, args.work)
        cells += row
        captions += below
    image_grid(cells, 2 + len(PROMPTS), captions).save(ASSETS / "pictures" / "teaser.png")


if __name__ == "__main__":
    main()
