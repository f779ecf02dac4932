"""What a concept does to its base, of a folder of drawn pictures: LFD and W2, when asked for."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
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
    sets = [_features(samples.files, None, dino, clip, batch)]
    for number in (0, 1):
        sets.append(_features(samples.rows, (pipe, samples, number), dino, clip, batch))

    found = {}
    for judge, (own, base, again) in zip(("dino", "clip"), zip(*sets, strict=True), strict=True):
        distance, floor = wasserstein(own, base), wasserstein(again, base)
        found[judge] = {
            "mean": distance.mean,
            "trace": distance.trace,
            "floor_mean": floor.mean,
            "floor_trace": floor.trace,
        }
    return found


def _features(
    items: Sequence[Any], drawing: tuple[EqDiffPipeline, Samples, int] | None, dino: Any, clip: Any,
    batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """DINO's and CLIP's features of picture files, or of what the base draws for rows: (N,D)."""
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    title = "pictures" if drawing is None else "the base's pictures"
    for first in tqdm(range(0, len(items), batch), desc=title, unit="batch", leave=False):
        some = items[first : first + batch]
        pictures = [load_photo(Path(file)).image for file in some] if drawing is None else []
        if drawing is not None:
            pipe, samples, number = drawing
            side = load_photo(samples.files[0]).image.size
            pictures = base_pictures(pipe, some, samples.class_word, side, number)
        found[0].append(dino.images(pictures))
        found[1].append(clip.images(pictures))
    return torch.cat(found[0]), torch.cat(found[1])


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
