"""What the two embeddings hold (the paper's Fig. 2): the bands of a photo, then pictures of S_LF, S_HF and S_ori alone.

    python benchmarks/bands.py CONCEPT [--picture FILE] [--prompts FILE] [--base DIR]

Each row is a prompt, drawn three times from the same seed (seed 0, nothing picked). On the toybox the judges also say
how much of the subject and of the style each embedding brings, over all the prompts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.base import load_base  # noqa: E402
from eqdiff.concept import load_concept  # noqa: E402
from eqdiff.config import ASSETS, TrainConfig, from_json, read_prompts, resolve_base  # noqa: E402
from eqdiff.data import image_grid, load_subject, to_pil  # noqa: E402
from eqdiff.frequency import Band, apply_band  # noqa: E402
from eqdiff.latents import band_filter  # noqa: E402
from eqdiff.metrics import caption, load_clip, load_dino, pair_scores, text_scores  # noqa: E402
from eqdiff.pipeline import EqDiffPipeline, seed_of  # noqa: E402

NAMES = {Band.FULL: ("I_ori", "S_ori"), Band.LOW: ("I_LF", "S_LF"), Band.HIGH: ("I_HF", "S_HF")}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("bands.png"), metavar="FILE")
    parser.add_argument("--prompts", type=Path, default=ASSETS / "prompts" / "toybox_style.txt", metavar="FILE")
    parser.add_argument("--base", help="default: that of the concept's config.json")
    args = parser.parse_args(argv)
    config = from_json(TrainConfig, (args.concept.parent / "config.json").read_text())
    subject = load_subject(config.instance_data_dir, class_word=config.class_word, resolution=config.resolution)
    photo = subject.images[:1]
    cells = [to_pil(apply_band(photo, torch.tensor([band]), band_filter(config))[0]) for band in NAMES]
    captions = [of_photo for of_photo, _ in NAMES.values()]
    base = load_base(resolve_base(args.base or config.pretrained_model_name_or_path))
    pipe = EqDiffPipeline.of(base)
    pipe.load_concept(load_concept(args.concept))
    prompts = list(read_prompts(args.prompts))
    seeds = [seed_of(0, prompt, 0) for prompt in prompts]
    drawn = {band: pipe(prompts, seeds=seeds, band=band).images for band in NAMES}
    for number, prompt in enumerate(prompts):
        cells += [images[number] for images in drawn.values()]
        captions += [f"{name}: {prompt.replace('{}', 'S')}" for _, name in NAMES.values()]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, columns=len(NAMES), captions=captions).save(args.picture)
    clip, dino = load_clip(str(ASSETS / "toybox" / "clip")), load_dino(str(ASSETS / "toybox" / "dino"))
    photos = dino.images([to_pil(image) for image in subject.images])
    texts = clip.texts([caption(prompt, subject.class_word) for prompt in prompts])
    for band, images in drawn.items():
        text = float(text_scores(clip.images(images), texts).mean())
        image = float(pair_scores(dino.images(images), photos).mean())
        print(f"{NAMES[band][1]:6} clip_t {text:.3f}  dino_i {image:.3f}")


if __name__ == "__main__":
    main()
