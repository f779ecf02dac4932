"""What a concept does to its base, of a folder of drawn pictures: LFD and W2, when asked for."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eqdiff.base.load import load_base
from eqdiff.base.schedule import sampler
from eqdiff.data.folder import load_photo
from eqdiff.evaluation.divergence import latent_fisher, rings_of
from eqdiff.evaluation.gaussians import ENOUGH, wasserstein
from eqdiff.evaluation.samples import Samples
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.tokens import plain

LOG = logging.getLogger(__name__)
JUDGES = ("dino", "clip")

Features = dict[str, Tensor]  # judge -> (N, D), a row a picture


def against_base(
    samples: Samples, config: EvalConfig, dino: Any, clip: Any, others: Sequence[str]
) -> dict[str, Any]:
    """{"latent_fisher": ..., "wasserstein": ...}, each if the settings ask for it.

    others: nouns of other classes, for prompts that do not name the subject.

    Raises UserError if the base or the concept cannot be loaded.
    """
    report: dict[str, Any] = {}
    if not (config.latent_fisher or config.wasserstein):
        return report

    pipe = EqDiffPipeline.of(load_base(samples.base))
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if config.wasserstein:
        report["wasserstein"] = _distances(pipe, samples, dino, clip, config.batch_size)
    if config.latent_fisher:
        pipe.load_concept(samples.concept)
        rings = rings_of(samples.class_word, others)
        report["latent_fisher"] = latent_fisher(pipe, rings, config.latent_fisher)
    return report


def _distances(
    pipe: EqDiffPipeline, samples: Samples, dino: Any, clip: Any, batch: int
) -> dict[str, dict[str, float]]:
    """Judge -> mean and trace term of W2^2, and of the floor: the base against itself."""
    count = len(samples.rows)
    if count < ENOUGH:
        LOG.warning(
            "%s: %d pictures; below %d the trace term of W2 is mostly noise: see its floor",
            samples.folder,
            count,
            ENOUGH,
        )
    parts = [slice(first, first + batch) for first in range(0, count, batch)]
    size = load_photo(samples.files[0]).image.size

    def seen(title: str, pictures: Callable[[slice], Sequence[Image.Image]]) -> Features:
        told = tqdm(parts, desc=title, unit="batch", leave=False)
        return features_of((pictures(part) for part in told), dino, clip)

    def of_base(number: int) -> Features:
        word = samples.class_word
        return seen(
            "the base's pictures",
            lambda part: base_pictures(pipe, samples.rows[part], word, size, number),
        )

    own = seen("pictures", lambda part: [load_photo(file).image for file in samples.files[part]])
    base, again = of_base(0), of_base(1)

    found = {}
    for judge in JUDGES:
        distance = wasserstein(own[judge], base[judge])
        floor = wasserstein(again[judge], base[judge])
        found[judge] = {
            "mean": distance.mean,
            "trace": distance.trace,
            "floor_mean": floor.mean,
            "floor_trace": floor.trace,
        }
    return found


def features_of(batches: Iterable[Sequence[Image.Image]], dino: Any, clip: Any) -> Features:
    """What DINO and CLIP see in pictures that come in batches."""
    seen = [(dino.images(list(some)), clip.images(list(some))) for some in batches]
    of_dino, of_clip = (torch.cat(part) for part in zip(*seen, strict=True))
    return {"dino": of_dino, "clip": of_clip}


def base_pictures(
    pipe: EqDiffPipeline,
    rows: Sequence[dict[str, Any]],
    class_word: str,
    size: tuple[int, int],
    number: int,
) -> list[Image.Image]:
    """The base's pictures of the rows' prompts with the class word, as the rows were drawn.

    rows: prompt, seed, scheduler, steps and guidance of each; the last three of the first count.
    size: width and height [pixels]. number: 0 for the rows' own seeds, else another seed for each.
    """
    first = rows[0]
    prompts = [plain(row["prompt"], class_word) for row in rows]
    seeds = [row["seed"] for row in rows]
    if number:
        seeds = [seed_of(seed % 2**62, "again", number) for seed in seeds]

    scheduler = sampler(first["scheduler"], pipe.scheduler.config)
    stock = EqDiffPipeline.of(pipe, scheduler)
    return stock(
        prompts,
        seeds=seeds,
        width=size[0],
        height=size[1],
        num_inference_steps=first["steps"],
        guidance_scale=first["guidance"],
    ).images
