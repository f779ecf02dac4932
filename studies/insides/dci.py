"""What DCI's strength and share do to pictures of a concept: text against subject.

    python -m studies.insides.dci CONCEPT [--shares 0.1 0.3 0.5 1] [--strengths -2 0 1 2]
        [--prompts FILE ...] [--picture FILE] [--base DIR]

All are drawn from the same seeds (seed 0, nothing picked). Printed are how far a picture is from
the plain one, as a mean over its pixels in % of their range, and mean CLIP-T and DINO-I by the
toybox's own judges. The picture has a row a prompt: plain, then each strength at the last share.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eqdiff.concept.file import load_concept
from eqdiff.errors import main_guard
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.sampling.dci import DCI
from eqdiff.settings.places import ASSETS
from eqdiff.settings.prompts import read_prompts
from studies.insides.concepts import base_of, save_grid, scorer, settings_of, subject_of

PROMPTS = [ASSETS / "prompts" / f"toybox_{kind}.txt" for kind in ("plain", "style")]


def change(images: Sequence[Image.Image], plain: Sequence[Image.Image]) -> float:
    """Mean distance of pictures to the plain ones, in % of the range of a pixel."""
    pairs = zip(images, plain, strict=True)
    distances = [np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]
    return 100 * float(np.mean(distances)) / 255


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 1.0])
    parser.add_argument("--strengths", type=float, nargs="+", default=[-2.0, 0.0, 1.0, 2.0])
    parser.add_argument("--prompts", type=Path, nargs="+", default=PROMPTS, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)

    config = settings_of(args.concept)
    prompts = [prompt for file in args.prompts for prompt in read_prompts(file)]
    seeds = [seed_of(0, prompt, 0) for prompt in prompts]
    how = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
    }
    pipe = EqDiffPipeline.of(base_of(config, args.base))
    pipe.load_concept(load_concept(args.concept))
    scores = scorer(prompts, subject_of(config))

    plain = list(pipe(prompts, seeds=seeds, **how).images)
    columns = {"plain": plain}

    def told(share: float, strength: str, images: Sequence[Image.Image]) -> None:
        figures = (f"{change(images, plain):.1f}", *(f"{score:.3f}" for score in scores(images)))
        print(f"| {share:g} | {strength} | {' | '.join(figures)} |", flush=True)

    print("| share | lambda | change [%] | CLIP-T | DINO-I |\n| --- | --- | --- | --- | --- |")
    told(0, "-", plain)
    for share in args.shares:
        for strength in args.strengths:
            options = [DCI(strength=strength, share=share)]
            images = list(pipe(prompts, seeds=seeds, sampling_options=options, **how).images)
            told(share, f"{strength:g}", images)
            columns[f"lambda {strength:g}"] = images

    if args.picture:
        rows = zip(*columns.values(), strict=True)
        captions = [f"{name}: {p.replace('{}', 'S')}" for p in prompts for name in columns]
        save_grid(args.picture, [image for row in rows for image in row], len(columns), captions)


if __name__ == "__main__":
    main()
