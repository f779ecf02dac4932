"""A grid of subjects x styles: what is drawn after training, and under it what was asked for; seed 0, nothing picked.

    python studies/grid.py [--study NAME] [--variant NAME] [--subjects N] [--picture FILE]

Two rows a subject of the test table: its first photo and the pictures of the study's concept (trained if it is not
there), then the truth, drawn by the toybox in one pose of many. The prompts are the study's own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.base import load_base  # noqa: E402
from eqdiff.config import BUNDLED_BASE  # noqa: E402 (the project is run from its folder)
from eqdiff.data import image_grid  # noqa: E402
from eqdiff.pipeline import EqDiffPipeline, seed_of  # noqa: E402
from studies.cells import Cell, concept, photos  # noqa: E402
from studies.instruments import FIRST_TRUTH  # noqa: E402
from studies.variants import STUDIES, Prompt, prompts, subjects  # noqa: E402
from toybox.instances import instance  # noqa: E402
from toybox.world import Scene, draw  # noqa: E402


def shown() -> list[Prompt]:
    """Of the study's prompts the first plain one in a place that no photo shows, and the first of each style."""
    first: dict[str, Prompt] = {}
    for prompt in prompts():
        if prompt.kind == "style" or prompt.context == "on the beach":
            first.setdefault(prompt.style, prompt)
    return list(first.values())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="baselines", choices=sorted(STUDIES))
    parser.add_argument("--variant", help="default: the one that the study compares others to")
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--picture", type=Path, default=ROOT / "assets" / "pictures" / "grid.jpg", metavar="FILE")
    args = parser.parse_args(argv)
    study = STUDIES[args.study]
    variant = args.variant or study.against
    base, asked = load_base(str(BUNDLED_BASE)), shown()
    pipe = EqDiffPipeline.of(base)
    cells, captions = [], []
    for class_name, index in subjects(args.subjects):
        cell = Cell(args.study, variant, class_name, index, 0, study.table)
        pipe.load_concept(str(concept(cell, study.variants[variant], base)))
        texts = [prompt.text for prompt in asked]
        how = study.draw.get(variant, {})
        cells += [Image.open(photos(cell) / "00.png").convert("RGB")]
        cells += pipe(texts, seeds=[seed_of(0, text, 0) for text in texts], **how).images
        captions += ["a photo", *(text.replace("{}", "S") for text in texts)]
        who = instance(study.table, class_name, index)
        drawn = [draw(Scene(who, prompt.context, prompt.style, FIRST_TRUTH)).image for prompt in asked]
        cells += [Image.new("RGB", cells[0].size, "white"), *map(Image.fromarray, drawn)]
        captions += ["", *("truth" for _ in asked)]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=1 + len(asked), captions=captions).save(args.picture, quality=90)


if __name__ == "__main__":
    main()
