"""How like the photos a preview is, as a number: a copy is too like, a wrong subject not enough.

With a DINO it is the cosine of pictures. Without one it is the distance of colours: those of the
subject inside its mask, and those of the whole picture. That says little, and is called so.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eqdiff.evaluation.fidelity import colour_distance, colours_of
from eqdiff.evaluation.metrics import load_dino
from eqdiff.settings.places import ASSETS, is_bundled
from eqdiff.settings.train import TrainConfig

SIDE = 64  # pixels a side, for colours


class Marks(NamedTuple):
    """What is said of previews.

    captions: one a picture. mean: over them. sentence: for the terminal.
    """

    captions: list[str]
    mean: float
    sentence: str


class Likeness:
    """Compares pictures with photos; a model is loaded once, on the CPU."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises UserError if the DINO that the settings name cannot be loaded."""
        name = config.dino_model
        if name is None and is_bundled(config.pretrained_model_name_or_path or "."):
            name = str(ASSETS / "toybox" / "dino")
        self.dino = load_dino(name, "cpu") if name else None

    def marks(
        self, pictures: Sequence[Image.Image], photos: Sequence[Image.Image], masks: Tensor
    ) -> Marks:
        """masks: (M,1,h,w) of the photos' subjects."""
        if self.dino is None:
            return _by_colours(pictures, photos, masks)

        drawn = self.dino.images(pictures).double()
        real = self.dino.images(photos).double()
        cosines = drawn @ real.T  # (N,M)
        captions = [
            f"like the photos {row.mean():.2f}, the nearest {row.max():.2f}" for row in cosines
        ]

        mean = float(cosines.mean())
        sentence = f"likeness of previews to the photos (DINO) {mean:.2f}"
        if len(real) > 1:
            others = (real @ real.T)[~torch.eye(len(real), dtype=torch.bool)]
            sentence += f"; of the photos to each other {float(others.mean()):.2f}"
        return Marks(captions, mean, sentence)


def _by_colours(
    pictures: Sequence[Image.Image], photos: Sequence[Image.Image], masks: Tensor
) -> Marks:
    """The distance from the subject's main colours to the nearest of each picture [dE00]."""
    inside = F.interpolate(masks.float().cpu(), (SIDE, SIDE)) >= 0.5
    pixels = [_pixels(photo)[mask.flatten()] for photo, mask in zip(photos, inside, strict=True)]
    subject = colours_of(torch.cat(pixels))

    distances = [colour_distance(subject, colours_of(_pixels(picture))) for picture in pictures]
    mean = sum(distances) / len(distances)
    captions = [f"colours off by {distance:.0f} dE" for distance in distances]
    return Marks(captions, mean, f"the subject's colours are off by {mean:.0f} dE in the previews")


def _pixels(picture: Image.Image) -> Tensor:
    """The pixels of a small copy: (P,3) in 0..1."""
    small = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)))
    return torch.from_numpy(small.copy()).flatten(0, 1).double() / 255
