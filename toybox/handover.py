"""Where on its way a base loses what it was told: it finishes pictures from early or late on.

    python -m toybox.handover [--count 200] [--first_steps 0 7 11 15 17]

A drawn scene is noised as far as at one of 20 steps, and the base draws the steps that are left
with the scene's own caption. A row a step: the judge's names as shares of its own on the drawn
scenes. What is lost from a late step on cannot be made good by the steps before it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from eqdiff.base.load import load_base
from eqdiff.errors import main_guard
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS
from toybox.guidance import SAMPLE
from toybox.judges import Judges
from toybox.latents import encode_scenes
from toybox.marks import BEST_GUIDANCE, STEPS, captions_of, drawn, marked_scenes, named
from toybox.quality import Guidance, guided, in_batches

NAMED = ("class", "style", "colour", "second", "pattern", "emblem")
BATCH = 32


@torch.no_grad()
def finished(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    captions: Sequence[str],
    seeds: Sequence[int],
    first: int,
    guidance: Guidance,
    steps: int = STEPS,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] that begin with noised latents, at the step `first`.

    latents: scaled means (N, 4, h, w). seeds: of each picture's noise.
    """
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    finisher = StableDiffusionImg2ImgPipeline(**{**pipe.components, "scheduler": scheduler})
    finisher.set_progress_bar_config(disable=True)
    steered = guided(guidance, steps, first)
    strength = min(1.0, (steps - first + 0.5) / steps)  # diffusers takes the floor of its steps

    def some(part: slice) -> Tensor:
        return finisher(
            list(captions[part]),
            image=latents[part],
            strength=strength,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type="pt",
            **steered,
        ).images

    return in_batches(some, len(captions), BATCH)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base = ASSETS / "toybox" / "base"
    parser.add_argument(
        "--base", type=Path, default=base, metavar="FOLDER", help="in plain diffusers"
    )
    parser.add_argument("--count", type=int, default=200, help="scenes")
    at = {"choices": range(STEPS), "metavar": "STEP", "default": [0, 7, 11, 15, 17]}
    parser.add_argument("--first_steps", type=int, nargs="+", **at, help=f"of {STEPS}")
    args = parser.parse_args(argv)

    pipe = EqDiffPipeline.of(load_base(str(args.base)))
    judges = Judges.load(ASSETS / "toybox")
    scenes = marked_scenes(args.count, SAMPLE)
    captions = captions_of(scenes)
    seeds = [scene.seed for scene in scenes]
    latents = torch.from_numpy(encode_scenes(pipe.vae, scenes)[0]).float()
    with torch.no_grad():
        own = named(judges, drawn(pipe.vae, scenes), scenes)

    print(f"| finished from t = | {' | '.join(NAMED)} [% of the judge's own] |")
    print(f"|{' --- |' * (len(NAMED) + 1)}", flush=True)
    schedule = DDIMScheduler.from_config(pipe.scheduler.config)
    schedule.set_timesteps(STEPS)
    for first in args.first_steps:
        images = finished(pipe, latents, captions, seeds, first, BEST_GUIDANCE)
        found = named(judges, images, scenes)
        shares = (f"{100 * found[name] / own[name]:.1f}" for name in NAMED)
        print(f"| {schedule.timesteps[first]} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
