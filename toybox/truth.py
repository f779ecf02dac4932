"""The ground truth of a prompt: the very subject, drawn in the prompt's style and context."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eqdiff.evaluation.fidelity import Colours, colour_distance, colours_of
from toybox.captions import plain_caption
from toybox.dataset import to_tensor
from toybox.instances import Instance, instance
from toybox.judges import Judges
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw

COUNT = 6  # pictures a prompt, each in another pose
FIRST_SEED = 10_000  # the bundled photos' seeds are far below
ALWAYS = 0.5  # of the poses cover a pixel: there a subject is looked for


@dataclass(frozen=True)
class Poses:
    """Drawn pictures of a subject, (n, 3, H, W) in [-1, 1], and its masks, bool (n, H, W)."""

    images: Tensor
    masks: Tensor

    @property
    def region(self) -> Tensor:
        """Where a subject is in most poses, bool (H, W)."""
        return self.masks.float().mean(0) >= ALWAYS

    @cached_property
    def colours(self) -> Colours:
        """The subject's main colours."""
        poses = zip(self.images, self.masks, strict=True)
        return colours_of(torch.cat([_inside(image, mask) for image, mask in poses]))

    def colour_distance(self, picture: Tensor) -> float:
        """dE00 from the subject's main colours to those of a picture (3, H, W) in its region."""
        return colour_distance(self.colours, colours_of(_inside(picture, self.region)))


def _inside(image: Tensor, mask: Tensor) -> Tensor:
    """Pixels (P, 3) in 0..1 of an image (3, H, W) in [-1, 1]."""
    return image[:, mask].T.add(1).div(2)


def read_prompt(prompt: str) -> tuple[str, str] | None:
    """The (context, style) of a canonical prompt with the slot {}; None for any other text."""
    pairs = ((context, style) for style in STYLE_NAMES for context in CONTEXT_NAMES)
    return next((pair for pair in pairs if plain_caption("{}", *pair) == prompt), None)


def drawings(
    subject: Instance, context: str, style: str, first: int, count: int = COUNT
) -> tuple[np.ndarray, np.ndarray]:
    """Drawn pictures of a subject, uint8 (n, H, W, 3), and its masks, bool (n, H, W).

    Their poses are seeded from `first` on.
    """
    seeds = range(first, first + count)
    drawn = [draw(Scene(subject, context, style, seed)) for seed in seeds]
    images = np.stack([picture.image for picture in drawn])
    return images, np.stack([picture.mask > 0 for picture in drawn])


def pictures(subject: Instance, context: str, style: str, first: int) -> np.ndarray:
    """COUNT of `drawings`, without masks."""
    images, _ = drawings(subject, context, style, first)
    return images


def truth_features(
    subject: Instance, context: str, style: str, first: int, judges: Judges
) -> Tensor:
    """What the toy DINO sees in them: (COUNT, D)."""
    return judges.identity(to_tensor(pictures(subject, context, style, first)))


def truths(about: Path, prompts: Iterable[str]) -> dict[str, list[Image.Image]]:
    """Prompt -> pictures of the subject of an instance.json.

    Prompts that are no caption of the toybox are left out. The poses are the same for every
    prompt, whatever others there are.
    """
    facts = json.loads(about.read_text(encoding="utf-8"))
    subject = instance(facts["table"], facts["class"], facts["index"])

    drawn = {}
    for prompt in prompts:
        place = read_prompt(prompt)
        if place is not None:
            images = pictures(subject, *place, FIRST_SEED)
            drawn[prompt] = [Image.fromarray(image) for image in images]
    return drawn
