"""Metrics that look at patches: the subject's parts one by one, and the text without the subject.

Masked max-cosine takes the patches of a photo inside its mask, and for each its best match in a
picture. The patches of a picture that match best are its subject. Painted over, they leave the
background, which is compared with the prompt without the subject's words.

Axes: N pictures, M photos, L patches of a photo or picture, K patches of the subject, D width.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from eqdiff.evaluation.fidelity import max_cosine
from eqdiff.evaluation.transforms import Transform

INSIDE = 0.5  # of a patch must be subject, for the patch to be
SLOT = re.compile(r"\b(?:(?:an?|the|one|this)\s+)?(?:\{\}|<new1>)\s*(?:,\s*)?", re.IGNORECASE)


def masked_patches(transform: Transform, masks: Sequence[Image.Image], count: int) -> Tensor:
    """Which of a judge's `count` patches show the subject, bool (M, count).

    masks: "L", as large as their photos. If no patch is covered enough, the one covered most is.
    """
    side = round(count**0.5)
    levels = torch.stack([tv.pil_to_tensor(transform.cut(mask)) for mask in masks])
    shares = F.adaptive_avg_pool2d(levels.float() / 255, side).flatten(1)
    most = shares == shares.amax(1, keepdim=True)
    return (shares >= INSIDE) | (most & (shares > 0))


def part_scores(pictures: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """Masked max-cosine of pictures, the mean over photos, float64 (N,).

    pictures: patches (N, L, D). photos: patches (M, L, D). masks: bool (M, L).
    """
    drawn = pictures.double()
    scores = [
        max_cosine(photo.double(), mask, drawn)
        for photo, mask in zip(photos, masks, strict=True)
        if mask.any()
    ]
    return torch.stack(scores).mean(0) if scores else torch.full((len(drawn),), torch.nan).double()


def subject_regions(pictures: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """Which patches of pictures are their subject, bool (N, L).

    They are those that match the subject's patches better than the photos' background; arguments
    as `part_scores`.
    """
    drawn = F.normalize(pictures.double(), dim=-1)
    of_photos = F.normalize(photos.double(), dim=-1)
    inside = of_photos[masks]  # (K, D)
    outside = of_photos[~masks]
    if not len(inside) or not len(outside):
        return torch.zeros(drawn.shape[:2], dtype=torch.bool)

    nearest = (drawn @ inside.T).amax(-1)
    return nearest > (drawn @ outside.T).amax(-1)


def without_subject(
    transform: Transform, images: Sequence[Image.Image], regions: Tensor
) -> list[Image.Image]:
    """The pictures with their subject's patches (N, L) painted over in the mean of the rest."""
    side = round(regions.shape[1] ** 0.5)
    blanked = []
    for image, region in zip(images, regions, strict=True):
        share = transform.crop / transform.resize  # of the short side that the judge sees
        length = round(min(image.size) * share)
        left = (image.width - length) // 2
        top = (image.height - length) // 2

        grid = tv.to_pil_image(region.view(1, side, side).to(torch.uint8) * 255)
        mask = Image.new("L", image.size, 0)
        mask.paste(grid.resize((length, length), Image.Resampling.NEAREST), (left, top))
        pixels = tv.pil_to_tensor(image.convert("RGB")).float()
        rest = tv.pil_to_tensor(mask)[0] == 0

        mean = pixels[:, rest].mean(1) if rest.any() else pixels.flatten(1).mean(1)
        colour = tuple(int(level) for level in mean.round())
        blanked.append(Image.composite(Image.new("RGB", image.size, colour), image, mask))
    return blanked


def background_text(prompt: str) -> str:
    """A prompt without the subject and its article."""
    return " ".join(SLOT.sub("", prompt).split())
