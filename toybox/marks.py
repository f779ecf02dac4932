"""What a base is marked by: colours followed, what the judge names, a Fréchet distance.

Captions are of held-out triples, with all that words can say of instances of the dev table. The
judge's own marks on drawn pictures of the same captions, through the VAE, are the most that a base
could have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from toybox.captions import best_caption, pair_caption, plain_caption
from toybox.dataset import to_tensor
from toybox.instances import CLASS_NAMES, PALETTE, instance
from toybox.judge import halves, labels_of, shares, through
from toybox.judges import Judges
from toybox.quality import Guidance, evaluation_triples, generate
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw, held_out_pair

STEPS = 20
# of a base's final marks, none in twelve steps: chosen by `python -m toybox.guidance` on sample 1
BEST_GUIDANCE = (1.0,) * 12 + (3.5,) * 8
GUIDANCE = 5.0  # of trials, colour words, marks on the way, and customization's opponent
ANOTHER_POSE = 500_000  # added to a scene's seed: the same subject and place, drawn otherwise
MIDDLE = (slice(40, 96), slice(36, 92))  # rows and columns where a subject surely is
SAMPLES_APART = 20_000  # from one sample's first seed to the next one's
TABLE = 200  # of the dev table's instances of a class, those that are drawn


def marked_scenes(count: int, sample: int = 0) -> list[Scene]:
    """Scenes of held-out triples, each with an instance of its class from the dev table.

    sample: 0 for the scenes of the marks; another number gives others, to choose settings on.
    """
    rng = np.random.default_rng(99 + 1000 * sample)
    scenes = []

    for number, triple in enumerate(evaluation_triples(count)):
        subject = instance("dev", CLASS_NAMES[triple.class_id], int(rng.integers(TABLE)))
        context = CONTEXT_NAMES[triple.context]
        seed = number + SAMPLES_APART * sample
        scenes.append(Scene(subject, context, STYLE_NAMES[triple.style], seed))

    return scenes


def marked_pairs(count: int) -> list[Scene]:
    """Photos of two dev subjects whose classes never stand side by side in training."""
    orders = [(a, b) for a in CLASS_NAMES for b in CLASS_NAMES if held_out_pair(a, b)]
    rng = np.random.default_rng(98)
    scenes = []

    for number in range(count):
        classes = orders[number % len(orders)]
        left, right = (instance("dev", name, int(rng.integers(TABLE))) for name in classes)
        context = CONTEXT_NAMES[number // len(orders) % len(CONTEXT_NAMES)]
        scenes.append(Scene(left, context, "photo", number, right))

    return scenes


def captions_of(scenes: Sequence[Scene]) -> list[str]:
    """The most that words can say of each scene."""
    return [
        best_caption(s.instance, s.context, s.style)
        if s.other is None
        else pair_caption(s.instance, s.other, s.context, s.style)
        for s in scenes
    ]


def expected(scenes: Sequence[Scene]) -> Tensor:
    """What the judge should name in scenes of one subject: int64 (N, 7), see judge.VALUES."""
    return torch.tensor([labels_of(s.instance, s.context, s.style) for s in scenes])


def drawn(vae: AutoencoderKL, scenes: Sequence[Scene], another_pose: int = 0) -> Tensor:
    """The scenes drawn, through the VAE: the best that a base could give."""
    moved = [replace(scene, seed=scene.seed + another_pose) for scene in scenes]
    images = to_tensor(np.stack([draw(scene).image for scene in moved]))
    return torch.cat([through(vae, part) for part in images.split(32)])


def named(judges: Judges, images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures in which the judge names each attribute as the scene has it."""
    return shares(judges.name(images), expected(scenes))


def pairs_named(judges: Judges, images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Pictures of two subjects: share of subjects named rightly, each in its half.

    Class and main colour are looked at.
    """
    windows = halves(images)
    by_side = []
    for side in range(2):
        singles = [Scene(s.subjects[side], s.context, s.style, s.seed) for s in scenes]
        by_side.append(named(judges, windows[:, side], singles))

    means = {what: np.mean([side[what] for side in by_side]) for what in ("class", "colour")}
    return {f"pair_{what}": float(mean) for what, mean in means.items()}


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of features (N, D), each taken as a normal distribution."""
    a = first.double()
    b = second.double()
    covariance_a = torch.cov(a.T)
    covariance_b = torch.cov(b.T)

    # the trace of the square root of A B is the sum of the square roots of its eigenvalues
    cross = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + covariance_a.trace() + covariance_b.trace() - 2 * cross)


@dataclass(frozen=True)
class ColourTest:
    """How colour words in the barest caption are followed, without a judge.

    followed: share of pictures in whose middle the requested palette colour is the most frequent.
    share: share of the middle's pixels that have the requested colour.
    """

    followed: float
    share: float

    @property
    def figures(self) -> dict[str, float]:
        """As the rows of marks have it."""
        return {"colour_followed": self.followed, "colour_pixels": round(self.share, 4)}


def main_colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Palette colours in the middle of pictures (N, 3, 128, 128).

    Returns the colour that most pixels are nearest to, int64 (N,), and each colour's share of the
    pixels (N, 10).
    """
    pixels = images[..., MIDDLE[0], MIDDLE[1]].add(1).mul(127.5)
    pixels = pixels.flatten(2).transpose(1, 2)  # (N, P, 3)
    palette = torch.tensor(list(PALETTE.values()), dtype=pixels.dtype)

    nearest = torch.cdist(pixels, palette.expand(len(pixels), -1, -1)).argmin(-1)
    counts = torch.stack([(nearest == i).float().mean(1) for i in range(len(PALETTE))], 1)
    return counts.argmax(1), counts


def colour_test(pipe: StableDiffusionPipeline) -> ColourTest:
    """Asks for "a photo of a blue bird" for 10 colours x 10 classes, a seed each."""
    words = list(PALETTE)
    requests = [(colour, noun) for colour in range(len(words)) for noun in CLASS_NAMES]
    prompts = [plain_caption(noun, None, "photo", words[colour]) for colour, noun in requests]
    images = generate(pipe, prompts, range(len(prompts)), steps=STEPS, guidance=GUIDANCE)

    requested = torch.tensor([colour for colour, _ in requests])
    most_frequent, counts = main_colours(images)
    share = counts.gather(1, requested[:, None]).mean()
    followed = (most_frequent == requested).float().mean()
    return ColourTest(float(followed), float(share))


@dataclass(frozen=True)
class Drawn:
    """What the judges see in scenes that are drawn through the VAE.

    named: shares of right names. features: of the scenes' own poses, (N, D). floor: the Fréchet
    distance of other poses to them.
    """

    named: dict[str, float]
    features: Tensor
    floor: float

    @classmethod
    def of(cls, vae: AutoencoderKL, scenes: Sequence[Scene], judges: Judges) -> "Drawn":
        truth = drawn(vae, scenes)
        features = judges.identity(truth)
        again = judges.identity(drawn(vae, scenes, ANOTHER_POSE))
        return cls(named(judges, truth, scenes), features, frechet(again, features))


def compared(
    images: Tensor, best: Drawn, scenes: Sequence[Scene], judges: Judges
) -> dict[str, float]:
    """Marks of pictures (N, 3, H, W) of the scenes' captions, see `marks`."""
    figures = named(judges, images, scenes)
    figures |= {f"{key}_drawn": value for key, value in best.named.items()}
    figures |= {f"{key}_share": figures[key] / max(own, 1e-9) for key, own in best.named.items()}
    figures["frechet"] = frechet(judges.identity(images), best.features)
    figures["frechet_floor"] = best.floor
    return figures


@torch.no_grad()
def marks(
    pipe: StableDiffusionPipeline,
    judges: Judges,
    count: int,
    pairs: int = 0,
    guidance: Guidance = GUIDANCE,
    sample: int = 0,
) -> tuple[dict[str, float], Tensor]:
    """All marks over `count` captions and `pairs` captions of two subjects, and the pictures.

    Each attribute has its share of right names, the judge's own on drawn pictures ("_drawn"), and
    the quotient of the two ("_share"). "frechet" is the distance to drawn pictures of the same
    captions, "frechet_floor" that of other drawings to them, both through the VAE. sample: of
    captions, see `marked_scenes`.
    """
    scenes = marked_scenes(count, sample)
    seeds = [scene.seed for scene in scenes]
    images = generate(pipe, captions_of(scenes), seeds, steps=STEPS, guidance=guidance)
    figures = compared(images, Drawn.of(pipe.vae, scenes, judges), scenes, judges)

    if pairs:
        two = marked_pairs(pairs)
        beside = generate(pipe, captions_of(two), range(pairs), steps=STEPS, guidance=guidance)
        figures |= pairs_named(judges, beside, two)
        images = torch.cat([images, beside])

    return {key: round(value, 6) for key, value in figures.items()}, images
