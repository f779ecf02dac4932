"""What the embeddings hold (the paper's Fig. 2): a photo's bands, then pictures of each embedding.

    python -m studies.insides.bands CONCEPT [--picture FILE] [--prompts FILE] [--base DIR]

Each row is a prompt, drawn from one seed by S_ori, S_LF and S_HF alone (seed 0, nothing picked).
The toybox's CLIP and DINO say how much of the prompt and of the subject each embedding brings, over
all prompts. S_LF and S_HF mean something where photos were filtered: on the toybox train with
--band_probs .1 .1 .8, since its preset filters none.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from eqdiff.concept.file import load_concept
from eqdiff.data.latents import band_filter
from eqdiff.data.sheets import to_pil
from eqdiff.errors import main_guard
from eqdiff.frequency import Band, apply_band
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.places import ASSETS
from eqdiff.settings.prompts import read_prompts
from studies.insides.concepts import base_of, save_grid, scorer, settings_of, subject_of

# band -> its photo, its embedding
NAMES = {
    Band.FULL: ("I_ori", "S_ori"),
    Band.LOW: ("I_LF", "S_LF"),
    Band.HIGH: ("I_HF", "S_HF"),
}


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("bands.png"), metavar="FILE")
    parser.add_argument(
        "--prompts", type=Path, default=ASSETS / "prompts" / "toybox_style.txt", metavar="FILE"
    )
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)

    config = settings_of(args.concept)
    subject = subject_of(config)
    prompts = list(read_prompts(args.prompts))
    seeds = [seed_of(0, prompt, 0) for prompt in prompts]
    pipe = EqDiffPipeline.of(base_of(config, args.base))
    pipe.load_concept(load_concept(args.concept))

    photo = subject.images[:1]
    kind = band_filter(config)
    cells = [to_pil(apply_band(photo, torch.tensor([band]), kind)[0]) for band in NAMES]
    captions = [name for name, _ in NAMES.values()]

    pictures = {band: list(pipe(prompts, seeds=seeds, band=band).images) for band in NAMES}
    for number, prompt in enumerate(prompts):
        cells += [images[number] for images in pictures.values()]
        captions += [f"{name}: {prompt.replace('{}', 'S')}" for _, name in NAMES.values()]

    save_grid(args.picture, cells, len(NAMES), captions)
    scores = scorer(prompts, subject)
    for band, images in pictures.items():
        clip_t, dino_i = scores(images)
        print(f"{NAMES[band][1]:6} clip_t {clip_t:.3f}  dino_i {dino_i:.3f}")


if __name__ == "__main__":
    main()
