"""How good a concept is on the toybox, where the truth can be drawn.

Four things count: identity, colours, parts, and how much of the text is kept. Identity is the toy
DINO's cosine to drawn pictures of the very subject in the style and place that a prompt asks for.
The bare base with its best caption is the opponent. Drawn pictures in other poses, through the
VAE, are the ceiling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eqdiff.evaluation.fidelity import max_cosine
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.places import ASSETS
from eqdiff.settings.prompts import read_prompts
from toybox.captions import best_caption
from toybox.dataset import to_tensor
from toybox.instances import PALETTE, Instance
from toybox.judge import through
from toybox.judges import Judges
from toybox.marks import GUIDANCE, STEPS
from toybox.quality import draw_prompts, generate
from toybox.truth import COUNT, Poses, drawings, read_prompt
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

KINDS = ("plain", "style")
SEEDS = 2  # pictures a prompt
FIRST_POSE = 10_000  # the first seed of the truth's poses: far from every photo's
POSES_APART = 100  # from one job's first pose to the next one's


@dataclass(frozen=True)
class Job:
    """A picture to be drawn: the kind of its prompt, its text, place and style, its number."""

    kind: str
    prompt: str
    context: str
    style: str
    number: int

    @property
    def seed(self) -> int:
        return seed_of(0, self.prompt, self.number)


def jobs(seeds: int = SEEDS) -> list[Job]:
    """8 plain and 8 stylized prompts, `seeds` pictures each."""
    work = []
    for kind in KINDS:
        for prompt in read_prompts(ASSETS / "prompts" / f"toybox_{kind}.txt"):
            place = read_prompt(prompt)
            assert place is not None, prompt
            work += [Job(kind, prompt, *place, number) for number in range(seeds)]
    return work


class Look(NamedTuple):
    """How a concept is drawn: its file, and arguments of the pipeline beside the concept's own."""

    concept: Path
    options: Mapping[str, Any] = MappingProxyType({})


def draw_all(
    pipe: EqDiffPipeline, work: Sequence[Job], subject: Instance, looks: Mapping[str, Look]
) -> dict[str, Tensor]:
    """Pictures (N, 3, 128, 128) of the jobs: "base" with the best caption, and each of `looks`."""
    seeds = [job.seed for job in work]
    prompts = [job.prompt for job in work]
    captions = [best_caption(subject, job.context, job.style) for job in work]
    drawn = {"base": generate(pipe, captions, seeds, steps=STEPS, guidance=GUIDANCE)}

    for name, look in looks.items():
        pipe.load_concept(str(look.concept))
        try:
            drawn[name] = draw_prompts(pipe, prompts, seeds, **look.options)
        finally:
            pipe.unload_concept()

    return drawn


@dataclass(frozen=True)
class Truth(Poses):
    """What a job's picture should look like.

    ceiling: one more pose, through the VAE (1, 3, H, W).
    """

    ceiling: Tensor

    def patches(self) -> Tensor:
        """Which of the first pose's 8 x 8 patches are mostly subject, bool (64,)."""
        return F.avg_pool2d(self.masks[:1].float()[None], 16).flatten() > 0.5


def truth_of(job: Job, place: int, subject: Instance, vae: Any) -> Truth:
    """The truth of the job at this place of the list, in poses of its own."""
    first = FIRST_POSE + POSES_APART * place
    images, masks = drawings(subject, job.context, job.style, first, COUNT + 1)
    pixels = to_tensor(images)
    return Truth(pixels[:COUNT], torch.from_numpy(masks[:COUNT]), through(vae, pixels[COUNT:]))


def colour_distances(truth: Truth, pictures: dict[str, Tensor]) -> dict[str, float]:
    """`Poses.colour_distance` of each picture (3, H, W), the ceiling as one called "drawn"."""
    named = {**pictures, "drawn": truth.ceiling[0]}
    return {f"{name}_colours": truth.colour_distance(image) for name, image in named.items()}


def row_of(truth: Truth, pictures: dict[str, Tensor], judges: Judges) -> dict[str, float]:
    """Identity and max-cosine of each picture (3, H, W) and of the ceiling."""
    names = [*pictures, "drawn"]
    images = torch.stack([*pictures.values(), truth.ceiling[0]])
    identity = (judges.identity(images) @ judges.identity(truth.images).T).mean(1)
    patches = judges.patches(truth.images[:1])[0]
    parts = max_cosine(patches, truth.patches(), judges.patches(images))

    row = {name: float(value) for name, value in zip(names, identity, strict=True)}
    return row | {f"{name}_parts": float(value) for name, value in zip(names, parts, strict=True)}


@torch.no_grad()
def measure(
    instance: Instance,
    subject: str,
    pipe: EqDiffPipeline,
    judges: Judges,
    looks: Mapping[str, Look],
    seeds: int = SEEDS,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A row a picture, with `subject` as the subject's name, and the pictures."""
    work = jobs(seeds)
    drawn = draw_all(pipe, work, instance, looks)
    named = {name: judges.name(images) for name, images in drawn.items()}
    rows = []

    for i, job in enumerate(work):
        truth = truth_of(job, i, instance, pipe.vae)
        pictures = {name: images[i] for name, images in drawn.items()}
        row: dict[str, Any] = {"subject": subject, "kind": job.kind}
        row |= {"prompt": job.prompt, "seed": job.number}
        row |= row_of(truth, pictures, judges)
        if job.style == "photo":
            row |= colour_distances(truth, pictures)

        right = {
            "context": CONTEXT_NAMES.index(job.context),
            "style": STYLE_NAMES.index(job.style),
            "colour": tuple(PALETTE).index(instance.colours[0]),
        }
        for name, seen in named.items():
            row |= {f"{name}_{what}": int(seen[what][i]) == value for what, value in right.items()}
        rows.append(row)

    return rows, drawn


def _means(rows: Sequence[dict[str, Any]], names: Sequence[str], ending: str = "") -> list[float]:
    """The mean over rows of name + ending, for each name."""
    return [float(np.mean([row[f"{name}{ending}"] for row in rows])) for name in names]


def summarize(rows: Sequence[dict[str, Any]], looks: Sequence[str]) -> dict[str, float]:
    """Means over rows by kind of prompt: gap closed, text kept against the base, parts, colours.

    looks: names of what was drawn, beside the base and the truth. Colours are of plain pictures
    only.
    """
    figures: dict[str, float] = {}
    for kind in KINDS:
        part = [row for row in rows if row["kind"] == kind]
        figures |= {f"{kind}/{name}": value for name, value in _of_kind(part, looks).items()}

    plain = [row for row in rows if row["kind"] == "plain"]
    drawn = _means(plain, ["drawn"], "_colours")[0]
    figures["plain/colours_drawn"] = drawn
    for name in (*looks, "base"):
        share = _means(plain, [name], "_colour")[0]
        distance = _means(plain, [name], "_colours")[0]
        figures |= {f"plain/colour_{name}": share, f"plain/colours_{name}": distance}
        figures[f"plain/colours_ratio_{name}"] = distance / drawn
    return figures


def _of_kind(rows: Sequence[dict[str, Any]], looks: Sequence[str]) -> dict[str, float]:
    """Identity, parts and text kept of the rows of one kind."""
    everyone = (*looks, "base", "drawn")
    identity = dict(zip(everyone, _means(rows, everyone), strict=True))
    figures = {f"identity_{name}": value for name, value in identity.items()}
    parts = zip(everyone, _means(rows, everyone, "_parts"), strict=True)
    figures |= {f"parts_{name}": value for name, value in parts}

    base, drawn = identity["base"], identity["drawn"]
    for name in looks:
        figures[f"gap_closed_{name}"] = (identity[name] - base) / (drawn - base)
        for what in ("context", "style"):
            own, theirs = _means(rows, (name, "base"), f"_{what}")
            figures |= {f"{what}_{name}": own, f"{what}_base": theirs}
            figures[f"{what}_kept_{name}"] = own - theirs
    return figures
