"""Random changes to a reference photo and its mask (Sec. 4.3).

Images are float in [-1, 1]. Masks are float {0, 1} with 1 = subject. R: side [pixels].
"""

from typing import Literal

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms import InterpolationMode

Augmentation = Literal["crop_rotate_flip", "scale", "none"]
TRIES = 10


# Sec. 4.3: random cropping, rotation and flipping of references. The ranges are ours. "scale" is
# what the release does instead.
def augment_reference(
    image: Tensor, mask: Tensor, kind: Augmentation, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random change to an image (3,R,R) in [-1,1] and its mask (1,R,R).

    crop_rotate_flip: scaled by 0.8 to 1.5 and shifted, rotated by up to 15 degrees, flipped half of
    the time. scale: two times in three scaled to 1/3 .. 1 of the size and pasted somewhere, else
    scaled by 1.2 to 1.4 and cropped. New ground is mid-grey, and not subject.

    At least a quarter of the subject stays in the frame: after 10 tries without, the image is
    returned unchanged. All random numbers come from the generator.
    """
    if kind == "none":
        return image, mask

    for _ in range(TRIES):
        chance = torch.rand(6, generator=generator).tolist()
        if kind == "scale":
            shrink = chance[0] < 0.66
            scale = (1 + 2 * chance[1]) / 3 if shrink else 1.2 + 0.2 * chance[1]
            angle = 0.0
            flip = False
        else:
            scale = 0.8 * (1.5 / 0.8) ** chance[1]
            angle = 30 * chance[2] - 15
            flip = chance[3] < 0.5

        place = (scale, angle, flip, chance[4], chance[5])
        moved = _moved(mask, *place, exact=True)
        if moved.sum() >= 0.25 * scale**2 * mask.sum() > 0:
            return _moved(image, *place, exact=False), moved

    return image, mask


def _moved(
    picture: Tensor,
    scale: float,
    angle: float,
    flip: bool,
    right: float,
    down: float,
    *,
    exact: bool,
) -> Tensor:
    """A picture (C,R,R) rotated, flipped and scaled, then put somewhere in an empty frame (C,R,R).

    angle: in degrees. right, down: the place, as shares 0..1 of the free room. exact: no values
    between those of the picture, for masks.
    """
    side = picture.shape[-1]
    moved = picture
    if angle:
        rotation = InterpolationMode.NEAREST if exact else InterpolationMode.BILINEAR
        moved = tv.rotate(moved, angle, rotation)
    if flip:
        moved = tv.horizontal_flip(moved)

    size = max(1, round(scale * side))
    scaling = InterpolationMode.NEAREST_EXACT if exact else InterpolationMode.BILINEAR
    moved = tv.resize(moved, [size, size], scaling, antialias=not exact)

    # pads where the copy is smaller than the frame, crops where it is larger
    left = round(right * (side - size))
    top = round(down * (side - size))
    return F.pad(moved, (left, side - size - left, top, side - size - top))
