"""A folder of photos -> square tensors with their masks.

Images are float in [-1, 1]. Masks are float {0, 1} with 1 = subject, or between them if not binary.
Axes: n photos, R side [pixels].
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from eqdiff.data.folder import (
    Photo,
    folder_warnings,
    listed,
    load_photo,
    photo_mask,
    stray_masks,
    subject_photos,
)
from eqdiff.data.outliers import out_of_line, unturned
from eqdiff.data.pictures import memory_named
from eqdiff.errors import UserError

LOG = logging.getLogger(__name__)
COPY_SIDE = 256  # longest side of the copies that are compared [pixels]
MOST_WINDOWS = 8  # side of a window at full size, in sides of the square made of it


@dataclass(frozen=True)
class Subject:
    """The photos of one subject.

    images (n,3,R,R) in [-1,1]. masks (n,1,R,R), 1 = subject. names: of the files. class_word: what
    the subject is.
    """

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]
    class_word: str


def load_subject(
    folder: str | Path,
    *,
    class_word: str,
    resolution: int,
    mask_dir: str | Path | None = None,
    binary_masks: bool = True,
    made_masks: str | Path | None = None,
) -> Subject:
    """The photos of a folder with their masks, as squares of `resolution` pixels.

    A mask comes from `mask_dir` (default: masks/ in the folder), else from the photo's alpha
    channel, else from the folder `made_masks`. Without any mask the whole pictures are the subject,
    with a warning. binary_masks: False keeps grey mask pixels grey.

    Raises UserError if there are no photos, if one is unreadable, if only some have a mask, or if a
    mask is empty or of another aspect.
    """
    paths = subject_photos(folder)
    mask_folders = [mask_folder(folder, mask_dir)]
    for line in (*folder_warnings(folder, paths), stray_masks(mask_folders[0], paths)):
        if line is not None:
            LOG.warning(line)

    if made_masks:
        mask_folders.append(made_masks)

    # squared one by one: a folder of large photos shall not be in memory at once
    squares = [_read_square(path, mask_folders, resolution, binary_masks) for path in paths]
    _check_masks(folder, squares)
    _warn_of_small(folder, squares, resolution)
    if len(paths) == 1:
        LOG.warning(
            "%s: one photo only; its reference will be a changed copy of itself; 3 to 6 are better",
            folder,
        )

    images = []
    masks = []
    for path, (image, cut, _) in zip(paths, squares, strict=True):
        levels = tv.pil_to_tensor(cut).float() / 255
        if not (levels >= 0.5).any():
            remedy = "use a closer photo of the subject"
            raise UserError(f"{path}: its mask vanishes at {resolution} pixels; {remedy}")

        images.append(tv.pil_to_tensor(image).float() / 127.5 - 1)
        masks.append((levels >= 0.5).float() if binary_masks else levels)

    reasons = out_of_line([image for image, _, _ in squares], [cut for _, cut, _ in squares])
    for path, reason in zip(paths, reasons, strict=True):
        if reason is not None:
            LOG.warning("%s: %s; look at it", path, reason)

    names = tuple(path.name for path in paths)
    return Subject(torch.stack(images), torch.stack(masks), names, class_word)


def square(
    image: Image.Image, mask: Image.Image | None, resolution: int, *, name: str = "photo"
) -> tuple[Image.Image, Image.Image]:
    """The same square of an RGB image and its "L" mask, R x R pixels each; nothing is squashed.

    The window is as long as the picture's short side. Its centre is as near to the mask's as the
    picture allows. Without a mask it is the middle of the picture, and the mask becomes 255.

    A subject that is longer than the short side is not cut off: the window is as long as the
    subject and reaches over the picture's edge. There the outermost pixels are repeated, and the
    mask is 0. A grey border would have an edge that the frequency split sees; a mirror image would
    show the subject twice.
    """
    side, box = _window(image, mask)
    if side > max(min(image.size), MOST_WINDOWS * resolution):
        # it reaches over the edges of a long picture by far: they are continued in small
        factor = side // (2 * resolution)
        image = image.reduce(factor)
        mask = mask and mask.reduce(factor)
        side, box = _window(image, mask)

    missing = [max(0, side - length) for length in image.size]
    mask = mask or Image.new("L", image.size, 255)

    if any(missing):
        LOG.warning(
            "%s: its subject is longer than the photo's short side: "
            "the photo is continued at its edges",
            name,
        )
        left = missing[0] // 2
        top = missing[1] // 2
        border = [left, top, missing[0] - left, missing[1] - top]
        image = tv.pad(image, border, padding_mode="edge")
        mask = tv.pad(mask, border)
        box = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)

    box = box or (0, 0, *image.size)
    left = _window_start(box[0], box[2], side, image.width)
    top = _window_start(box[1], box[3], side, image.height)
    window = (left, top, left + side, top + side)

    size = (resolution, resolution)
    cut_image = image.resize(size, Image.Resampling.BICUBIC, box=window)
    cut_mask = mask.resize(size, Image.Resampling.BOX, box=window)
    return cut_image, cut_mask


def mask_folder(folder: str | Path, mask_dir: str | Path | None) -> Path:
    """Where the user's masks are: `mask_dir`, or masks/ in the photo folder.

    Raises UserError if `mask_dir` is named and there is no such folder.
    """
    if mask_dir is not None and not Path(mask_dir).is_dir():
        remedy = "there is no such folder; name the one with the masks"
        raise UserError(f"--mask_dir {mask_dir}: {remedy}")
    return Path(mask_dir or Path(folder) / "masks")


def _window(
    image: Image.Image, mask: Image.Image | None
) -> tuple[int, tuple[int, int, int, int] | None]:
    """The side of a picture's square [pixels], and the box of the mask; None without one."""
    box = mask.point(lambda grey: 255 if grey >= 128 else 0).getbbox() if mask else None
    subject_length = max(box[2] - box[0], box[3] - box[1]) if box else 0
    return max(min(image.size), subject_length), box


class _Square(NamedTuple):
    """The square of a photo and of its mask; and what they are made from, in small."""

    image: Image.Image
    mask: Image.Image
    copy: "_Copy"


class _Copy(NamedTuple):
    """photo: its image has at most COPY_SIDE pixels a side. mask: of that size; None without one.

    side: of the square in the whole picture [pixels].
    """

    photo: Photo
    mask: Image.Image | None
    side: int


def _read_square(
    path: Path, mask_folders: Sequence[str | Path], resolution: int, binary: bool
) -> _Square:
    """The square of the photo in a file.

    The photo is read at least twice as large as needed, if it has that.
    """
    photo = load_photo(path, enough=2 * resolution)
    mask = photo_mask(photo, mask_folders, binary=binary)
    with memory_named(path):
        image, cut = square(photo.image, mask, resolution, name=path.name)

    side, _ = _window(photo.image, mask)
    small = photo.image.copy()
    small.thumbnail((COPY_SIDE, COPY_SIDE))
    small_mask = mask and mask.resize(small.size, Image.Resampling.BOX)
    return _Square(image, cut, _Copy(photo._replace(image=small, alpha=None), small_mask, side))


def _check_masks(folder: str | Path, squares: Sequence[_Square]) -> None:
    """Warns if no photo has a mask, or one seems not to be turned as its photo is.

    Raises UserError if only some have one.
    """
    photos = [square.copy.photo for square in squares]
    masks = [square.copy.mask for square in squares]
    without = [photo.path.name for photo, mask in zip(photos, masks, strict=True) if mask is None]
    if without and len(without) < len(photos):
        remedy = "make one for each photo, or remove these photos"
        raise UserError(f"{folder}: no mask for {', '.join(without)}; {remedy}")

    if without:
        LOG.warning(
            "%s: no masks; the whole pictures count as the subject, "
            "so their background is learned too",
            folder,
        )
        return

    for i in unturned(photos, [mask for mask in masks if mask is not None]):
        LOG.warning(
            "%s: its mask seems to be made from the photo as it is stored, and counts as displayed "
            "(EXIF orientation %d); turn the mask as the photo is turned",
            photos[i].path,
            photos[i].orientation,
        )


def _warn_of_small(folder: str | Path, squares: Sequence[_Square], resolution: int) -> None:
    """Says which photos have fewer pixels than are learned."""
    small = [square.copy.photo for square in squares if square.copy.side < resolution]
    if small:
        LOG.warning(
            "%s: smaller than the %d pixels that are learned, so enlarged and blurred: %s; "
            "larger photos are better",
            folder,
            resolution,
            listed([f"{photo.path.name} ({photo.size[0]} x {photo.size[1]})" for photo in small]),
        )


def _window_start(start: int, stop: int, side: int, length: int) -> int:
    """Where a window of `side` pixels starts whose centre is that of start..stop.

    It is moved as little as needed to stay within 0..length.
    """
    return min(max((start + stop - side) // 2, 0), length - side)
