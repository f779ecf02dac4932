"""The judge: a small residual network that names what a picture shows, and its training.

    python -m toybox.judge [--minutes 25]

It is trained on drawn pictures alone, some of them through the VAE, and never on a base's. So it
sees generated pictures as it sees drawn ones. One head of logits holds all attributes.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers import ResNetConfig, ResNetForImageClassification

from toybox.dataset import Dataset, load, scaled, scene_of, to_tensor
from toybox.instances import CLASS_NAMES, EMBLEMS, PALETTE, PATTERNS, Instance
from toybox.loop import add_arguments, budget, fit
from toybox.world import CONTEXT_NAMES, PAIR_OFFSET, STYLE_NAMES, Scene, draw, random_scene

# attribute -> its values, in the order of the head's logits
VALUES: dict[str, tuple[str, ...]] = {
    "class": CLASS_NAMES,
    "context": CONTEXT_NAMES,
    "style": STYLE_NAMES,
    "colour": tuple(PALETTE),
    "second": tuple(PALETTE),
    "pattern": PATTERNS,
    "emblem": EMBLEMS,
}
COLOURS = ("colour", "second")  # attributes that a pencil sketch does not show
WEIGHTS = {
    "pattern": 3.0,
    "emblem": 3.0,
}  # of their losses, beside 1: what is small is learned last
UNKNOWN = -100  # a label that cross_entropy ignores
PAIR_SHARE = 0.15  # of a batch: halves of pictures with two subjects
THROUGH_SHARE = 0.3  # of a batch: through the VAE
# what generated pictures suffer from: soft detail and slightly wrong colours
AUGMENT = v2.Compose(
    [
        v2.RandomApply([v2.GaussianBlur(5, (0.4, 1.4))], p=0.25),
        v2.RandomApply([v2.GaussianNoise(0, 0.05)], p=0.2),
    ]
)


def labels_of(subject: Instance, context: str, style: str) -> tuple[int, ...]:
    """What the judge should name: one index an attribute of VALUES, UNKNOWN where it is hidden."""
    truth = {
        "class": subject.class_name,
        "context": context,
        "style": style,
        "colour": subject.colours[0],
        "second": subject.colours[1],
        "pattern": subject.pattern,
        "emblem": subject.emblem,
    }
    hidden = COLOURS if style == "pencil sketch" else ()
    return tuple(
        UNKNOWN if name in hidden else values.index(truth[name]) for name, values in VALUES.items()
    )


def halves(images: Tensor) -> Tensor:
    """Each subject's window in pictures of two, enlarged to the frame.

    (N, 3, H, W) -> (N, 2, 3, H, W), left before right.
    """
    height, width = images.shape[-2:]
    top = height // 4
    side = width // 2

    windows = []
    for sign in (-1, 1):
        left = round(width // 2 + sign * PAIR_OFFSET * width - side / 2)
        window = images[..., top : top + side, left : left + side]
        enlarged = F.interpolate(window, (height, width), mode="bilinear", align_corners=False)
        windows.append(enlarged)
    return torch.stack(windows, 1)


def judge_model() -> ResNetForImageClassification:
    names = [f"{attribute}: {value}" for attribute, values in VALUES.items() for value in values]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 160],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def split(logits: Tensor) -> dict[str, Tensor]:
    """The head's logits (N, 63) by attribute."""
    parts = logits.split([len(values) for values in VALUES.values()], -1)
    return dict(zip(VALUES, parts, strict=True))


class JudgeLoss(nn.Module):
    """The sum of the attributes' cross-entropies, the small ones weighted up."""

    def __init__(self, judge: ResNetForImageClassification) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch  # (B, 3, 128, 128), (B, 7)
        parts = split(self.judge(pixel_values=images).logits)
        losses = {}
        for i, (name, part) in enumerate(parts.items()):
            losses[name] = F.cross_entropy(part, labels[:, i])

        total = sum(WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items())
        return {"loss": total, **losses}


def _scene_labels(scene: Scene) -> list[tuple[int, ...]]:
    return [labels_of(subject, scene.context, scene.style) for subject in scene.subjects]


@torch.no_grad()
def through(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures as the VAE gives them back."""
    latents = vae.encode(images.to(vae.device)).latent_dist.mean
    return vae.decode(latents).sample.clamp(-1, 1).to(images.device)


def _picker(images: np.ndarray, device: str) -> Callable[[np.ndarray], Tensor]:
    """Rows of a dataset's pictures -> tensors on a device; a GPU has all of them in its memory."""
    if device == "cpu":
        return lambda rows: to_tensor(images[rows])
    whole = torch.from_numpy(np.array(images)).to(device)

    return lambda rows: scaled(whole[torch.from_numpy(rows).to(device)])


def batches(
    singles: Dataset,
    pairs: Dataset,
    vae: AutoencoderKL | None,
    size: int,
    seed: int,
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of images (size, 3, 128, 128) and their labels (size, 7).

    A share of them are halves of pairs, and with a VAE a share has been through it.
    """
    rng = np.random.default_rng(seed)
    of_one, of_two = (_picker(part.images, device) for part in (singles, pairs))
    of_singles = np.array([_scene_labels(scene_of(row))[0] for row in singles.labels])
    of_pairs = np.array([_scene_labels(scene_of(row)) for row in pairs.labels])
    crops = round(PAIR_SHARE * size)

    while True:
        one = rng.integers(len(singles), size=size - crops)
        two = rng.integers(len(pairs), size=crops)
        side = rng.integers(2, size=crops)
        windows = halves(of_two(two))
        windows = windows[torch.arange(crops), torch.from_numpy(side)]

        images = torch.cat([of_one(one), windows])
        if vae is not None:
            soft = round(THROUGH_SHARE * size)
            images[:soft] = through(vae, images[:soft])

        labels = np.concatenate([of_singles[one], of_pairs[two, side]])
        yield AUGMENT(images), torch.from_numpy(labels).to(device)


@torch.no_grad()
def name(judge: ResNetForImageClassification, images: Tensor) -> dict[str, Tensor]:
    """What the judge sees in pictures (N, 3, 128, 128).

    Attribute -> index of its value in VALUES, int64 (N,).
    """
    logits = torch.cat([judge(pixel_values=part).logits for part in images.split(64)])
    return {attribute: part.argmax(-1) for attribute, part in split(logits).items()}


def shares(named: dict[str, Tensor], truth: Tensor) -> dict[str, float]:
    """Share of pictures in which each attribute is named as in the truth (N, 7).

    The second colour counts only where a pattern shows it.
    """
    plain = truth[:, list(VALUES).index("pattern")] == PATTERNS.index("plain")
    figures = {}

    for i, attribute in enumerate(VALUES):
        known = truth[:, i] != UNKNOWN
        if attribute == "second":
            known &= ~plain
        right = named[attribute] == truth[:, i]
        figures[attribute] = float(right[known].float().mean())

    return figures


def accuracy(
    judge: ResNetForImageClassification, vae: AutoencoderKL | None = None, count: int = 2000
) -> dict[str, dict[str, float]]:
    """Shares named rightly of fresh drawn pictures of the dev table: of "all", and by style."""
    rng = np.random.default_rng(12345)
    scenes = [
        random_scene(rng, "dev", 200, photo_share=0.3, avoid_held_out=False) for _ in range(count)
    ]
    images = to_tensor(np.stack([draw(scene).image for scene in scenes]))
    if vae is not None:
        images = torch.cat([through(vae, part) for part in images.split(32)])

    named = name(judge, images)
    truth = torch.tensor([_scene_labels(scene)[0] for scene in scenes])
    styles = truth[:, list(VALUES).index("style")]

    figures = {"all": shares(named, truth)}
    for number, style in enumerate(STYLE_NAMES):
        rows = styles == number
        of_style = {attribute: values[rows] for attribute, values in named.items()}
        figures[style] = shares(of_style, truth[rows])
    return figures


def flat(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures of `accuracy` as "style/attribute", rounded."""
    return {
        f"{part}/{attribute}": round(value, 4)
        for part, row in figures.items()
        for attribute, value in row.items()
    }


def save(
    judge: ResNetForImageClassification, folder: Path, marked: bool = True
) -> dict[str, float]:
    """Writes fp16 weights, and returns what `accuracy` says; nothing where that takes too long."""
    figures = flat(accuracy(judge)) if marked else {}
    judge.half().save_pretrained(folder)
    judge.float()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, steps=40000, minutes=25, rate=1e-3, batch=64)
    pairs = Path("runs/toybox/pairs")
    parser.add_argument("--pairs", type=Path, default=pairs, metavar="DIR", help="of two subjects")
    parser.add_argument(
        "--through_vae", action="store_true", help="some pictures through the committed VAE"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the judge goes (default: --assets/judge)"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    folder = args.output or args.assets / "judge"
    judge = judge_model()
    if args.resume:
        judge = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
    vae = None
    if args.through_vae:
        parts = args.assets / "base" / "vae"
        vae = AutoencoderKL.from_pretrained(parts, dtype=torch.float32).eval().to(device)

    stream = batches(load(args.data), load(args.pairs), vae, args.batch, args.seed, device)
    module = JudgeLoss(judge).to(memory_format=torch.channels_last)
    log = args.data.parent / "judge.jsonl"
    # a GPU's minutes are dear: what comes of them is marked by studies.quality.toybox_quality
    fit(module, stream, budget(args), lambda m: save(m.judge, folder, device == "cpu"), log)


if __name__ == "__main__":
    main()
