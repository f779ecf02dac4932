"""Masks that are out of line with the other photos of a subject, by coverage, colours or turn.

Axes: n photos of one subject, H x W pixels each.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from eqdiff.data.colours import affinity, colour_codes, histogram, lab_of
from eqdiff.data.folder import Photo
from eqdiff.data.pictures import TURNS

FEWEST = 3  # photos: of two that differ, nobody knows which is out of line
TIMES = 3  # a mask that covers so many times more or less than the others' median is out of line
NEAR = 0.85  # and one whose colours are less near to the others' than this share of the usual
CLEARLY = 0.1  # a turned mask has to fit the others' colours better by so much
COPY_SIDE = 128  # longest side of the copies that are compared [pixels]


def out_of_line(photos: Sequence[Image.Image], masks: Sequence[Image.Image]) -> list[str | None]:
    """For each RGB photo with its "L" mask why it is out of line with the others; None if not."""
    if len(photos) < FEWEST:
        return [None] * len(photos)

    coverages = [np.asarray(mask).mean() / 255 for mask in masks]
    colours = [_colours(photo, mask) for photo, mask in zip(photos, masks, strict=True)]
    near = [affinity(one, _mean_of_others(colours, i)) for i, one in enumerate(colours)]

    reasons: list[str | None] = []
    for i, coverage in enumerate(coverages):
        usual = float(np.median(np.delete(coverages, i)))
        if not usual / TIMES <= coverage <= usual * TIMES:
            reasons.append(f"its mask covers {coverage:.0%}, the others' about {usual:.0%}")
        elif near[i] < NEAR * np.median(np.delete(near, i)):
            reasons.append("its mask has other colours than the other photos' masks")
        else:
            reasons.append(None)
    return reasons


def unturned(photos: Sequence[Photo], masks: Sequence[Image.Image]) -> list[int]:
    """Which photos' masks seem to be made from the photo as it is stored, not as it is displayed.

    Both have one size after a half turn or a mirroring, and in a square photo always. The mask is
    taken as displayed; it is in this list if turned as the photo it fits the others' colours
    clearly better.
    """
    suspects = []
    for i, photo in enumerate(photos):
        width, height = photo.size
        if photo.orientation in TURNS and (photo.orientation < 5 or width == height):
            suspects.append(i)
    if not suspects or len(photos) < 2:
        return []

    images = [photo.image for photo in photos]
    colours = [_colours(image, mask) for image, mask in zip(images, masks, strict=True)]
    found = []
    for i in suspects:
        common = _mean_of_others(colours, i)
        turned = masks[i].transpose(TURNS[photos[i].orientation])
        if affinity(_colours(images[i], turned), common) > affinity(colours[i], common) + CLEARLY:
            found.append(i)
    return found


def _mean_of_others(colours: Sequence[np.ndarray], i: int) -> np.ndarray:
    return np.mean([other for j, other in enumerate(colours) if j != i], 0)


def _colours(photo: Image.Image, mask: Image.Image) -> np.ndarray:
    """The histogram of what is inside a mask."""
    scale = COPY_SIDE / max(photo.size)
    size = tuple(max(1, round(length * scale)) for length in photo.size)
    small = cv2.resize(np.asarray(photo), size, interpolation=cv2.INTER_AREA)
    weights = cv2.resize(np.asarray(mask), size, interpolation=cv2.INTER_AREA)
    return histogram(colour_codes(lab_of(small)), weights.astype(np.float32))
