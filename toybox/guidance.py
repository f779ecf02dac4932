"""Which guidance and how many steps the base draws best with, on captions that no mark is taken on.

    python -m toybox.guidance [--values 2 3 1:3] [--steps 20] [--spacing trailing] [--count 256]

Guidance sharpens what the text asks for, and takes variety: the Fréchet distance sees that. A row
a value: the judge's names as shares of its own on drawn pictures, and the distance in floors. A
value such as 1:3 rises from 1 at the first step to 3 at the last, 1:3:1 falls again halfway, and
1x12:3x8 is 1 in twelve steps, then 3 in eight.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from eqdiff.base.load import load_base
from eqdiff.errors import UserError, main_guard
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS
from toybox.judges import Judges
from toybox.marks import STEPS, Drawn, captions_of, compared, marked_scenes
from toybox.quality import generate

SAMPLE = 1  # of captions: the marks are of sample 0
SHARES = ("class", "context", "style", "colour", "second", "pattern", "emblem")


@torch.no_grad()
def looked_at(
    pipe: StableDiffusionPipeline,
    judges: Judges,
    values: Sequence[str],
    steps: int,
    count: int,
) -> dict[str, dict[str, float]]:
    """Guidance -> marks of `count` captions, whose seeds are the same for each."""
    scenes = marked_scenes(count, SAMPLE)
    best = Drawn.of(pipe.vae, scenes, judges)
    seeds = [scene.seed for scene in scenes]
    found: dict[str, dict[str, float]] = {}
    for value in values:
        knots = knots_of(value)
        images = generate(pipe, captions_of(scenes), seeds, steps=steps, guidance=knots)
        found[value] = compared(images, best, scenes, judges)
        print(line_of(value, found[value]), flush=True)
    return found


def knots_of(value: str) -> list[float]:
    """The knots that a value of the command line names, see `toybox.quality.scales_of`.

    Raises UserError if it is not of numbers.
    """
    try:
        parts = [part.partition("x") for part in value.split(":")]
        return [float(knot) for knot, _, times in parts for _ in range(int(times or 1))]
    except ValueError as error:
        raise UserError(f"--values {value}: want numbers such as 3, 1:3 or 1x12:3x8") from error


def line_of(value: str, marks: Mapping[str, float]) -> str:
    """A row of the table, in Markdown."""
    shares = (f"{100 * marks[f'{name}_share']:.0f}" for name in SHARES)
    floors = marks["frechet"] / marks["frechet_floor"]
    return f"| {value} | {' | '.join(shares)} | {floors:.1f} | {marks['frechet']:.4f} |"


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", nargs="+", default=["2", "3", "4", "5", "7.5"])
    parser.add_argument("--steps", type=int, default=STEPS)
    spacings = ("leading", "trailing")  # Lin et al. 2023: leading steps begin below the last t
    parser.add_argument("--spacing", choices=spacings, default="leading", help="of the steps")
    parser.add_argument("--count", type=int, default=256, help="captions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)

    pipe = EqDiffPipeline.of(load_base(str(ASSETS / "toybox" / "base")))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=args.spacing)
    judges = Judges.load(ASSETS / "toybox")
    print(f"| guidance | {' | '.join(SHARES)} [% of the judge's own] | Fréchet, floors | Fréchet |")
    print(f"|{' --- |' * (len(SHARES) + 3)}", flush=True)
    found = looked_at(pipe, judges, args.values, args.steps, args.count)
    if args.json:
        record = {
            "steps": args.steps,
            "spacing": args.spacing,
            "captions": args.count,
            "values": found,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
