"""A folder of photos -> square tensors with masks; reference augmentation; contact sheets.

Images are float in [-1, 1], masks float {0, 1} with 1 = subject (between them if not binary). R: side [pixels].
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torchvision.transforms import InterpolationMode

from eqdiff.config import UserError
from eqdiff.photos import find_mask, load_mask, load_photo, remarks, subject_mask, subject_photos

Augmentation = Literal["crop_rotate_flip", "scale", "none"]
TINT = (255, 0, 80)
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """The photos of one subject.

    images (n,3,R,R) in [-1,1]; masks (n,1,R,R), 1 = subject; names: file names; class_word: what the subject is.
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
    """Photos and their masks: from `mask_dir` (default: masks/ in the folder), else from the photo's alpha channel,
    else from the folder `made_masks`.

    No mask at all: the whole picture is the subject, with a warning. `binary_masks` False: grey mask pixels stay grey.
    UserError: no photos, an unreadable one, a mask that is empty or of another aspect, masks for some photos only.
    """
    paths = subject_photos(folder)
    for remark in remarks(folder, paths):
        LOG.warning(remark)
    given = mask_folder(folder, mask_dir)
    pairs = [_photo_and_mask(path, given, made_masks, 2 * resolution, binary=binary_masks) for path in paths]
    without = [path.name for path, (_, mask) in zip(paths, pairs, strict=True) if mask is None]
    if without and len(without) < len(paths):
        raise UserError(f"{folder}: no mask for {', '.join(without)}; make one for each photo, or remove these photos")
    if without:
        LOG.warning("%s: no masks; the whole pictures count as the subject, so their background is learned too", folder)
    if len(paths) == 1:
        LOG.warning("%s: one photo only; its reference will be a changed copy of itself; 3 to 6 are better", folder)
    images, masks = [], []
    for path, (photo, mask) in zip(paths, pairs, strict=True):
        image, cut = square(photo, mask, resolution, name=path.name)
        levels = tv.pil_to_tensor(cut).float() / 255
        images.append(tv.pil_to_tensor(image).float() / 127.5 - 1)
        masks.append((levels >= 0.5).float() if binary_masks else levels)
        if not (levels >= 0.5).any():
            raise UserError(f"{path}: its mask vanishes at {resolution} pixels; use a closer photo of the subject")
    return Subject(torch.stack(images), torch.stack(masks), tuple(path.name for path in paths), class_word)


def square(
    image: Image.Image, mask: Image.Image | None, resolution: int, *, name: str = "photo"
) -> tuple[Image.Image, Image.Image]:
    """RGB image and "L" mask of one size -> the same square of both, R x R, nothing squashed, no subject cut off.

    The window has the short side's length and its centre as near to the mask's as the picture allows. Around a subject
    longer than that it has the subject's length and reaches over the picture's edge: there the outermost pixels go on,
    and the mask is 0. Going on has no step, so that the frequency split sees no line that is not there (a grey border
    would be one), and shows the subject once, unlike a mirror. No mask: the middle, and a mask of 255.
    """
    size = (resolution, resolution)
    box = mask.point(lambda grey: 255 if grey >= 128 else 0).getbbox() if mask else None
    extent = max(box[2] - box[0], box[3] - box[1]) if box else 0
    side = max(min(image.size), extent)
    beyond = [max(0, side - length) for length in image.size]
    mask = mask or Image.new("L", image.size, 255)
    if any(beyond):
        LOG.warning("%s: its subject is longer than the photo's short side: the photo is continued at its edges", name)
        left, top = (more // 2 for more in beyond)
        border = [left, top, beyond[0] - left, beyond[1] - top]
        image, mask = tv.pad(image, border, padding_mode="edge"), tv.pad(mask, border)
        box = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    box = box or (0, 0, *image.size)
    spans = zip(image.size, box[:2], box[2:], strict=True)
    left, top = (min(max((start + stop - side) // 2, 0), length - side) for length, start, stop in spans)
    window = (left, top, left + side, top + side)
    return image.resize(size, Image.Resampling.BICUBIC, box=window), mask.resize(size, Image.Resampling.BOX, box=window)


# Sec. 4.3: random cropping, rotation and flipping of references, ranges ours. "scale": what the release does instead.
def augment_reference(
    image: Tensor, mask: Tensor, kind: Augmentation, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random change to an image (3,R,R) in [-1,1] and its mask (1,R,R); new ground is mid-grey and not subject.

    crop_rotate_flip: scaled by 0.8 to 1.5 and shifted, turned by up to 15 degrees, flipped half of the time.
    scale: two times in three to 1/3 .. 1 of the size, pasted somewhere; else by 1.2 to 1.4 and cropped.
    At least a quarter of the subject stays in the frame: 10 tries, then the original. The generator decides everything.
    """
    if kind == "none":
        return image, mask
    for _ in range(10):
        chance = torch.rand(6, generator=generator).tolist()
        if kind == "scale":
            shrink = chance[0] < 0.66
            scale, angle, flip = (1 + 2 * chance[1]) / 3 if shrink else 1.2 + 0.2 * chance[1], 0.0, False
        else:
            scale = 0.8 * (1.5 / 0.8) ** chance[1]
            angle, flip = 30 * chance[2] - 15, chance[3] < 0.5
        place = (scale, angle, flip, chance[4], chance[5])
        moved = _moved(mask, *place, exact=True)
        if moved.sum() >= 0.25 * scale**2 * mask.sum() > 0:
            return _moved(image, *place, exact=False), moved
    return image, mask


def overlay_sheet(subject: Subject) -> Image.Image:
    """A contact sheet to check masks by: each photo tinted and outlined where its mask is, name and coverage below."""
    tinted, captions = [], []
    for image, mask, name in zip(subject.images, subject.masks, subject.names, strict=True):
        tinted.append(overlay(to_pil(image), tv.to_pil_image(mask)))
        captions.append(f"{name}  {100 * mask.mean().item():.1f} %")
    return image_grid(tinted, columns=min(4, math.ceil(math.sqrt(len(tinted)))), captions=captions)


def overlay(photo: Image.Image, area: Image.Image) -> Image.Image:
    """An RGB photo tinted and outlined where its "L" mask is."""
    tint = Image.new("RGB", photo.size, TINT)
    solid = area.point(lambda grey: 255 if grey >= 128 else 0)
    edge = Image.composite(Image.new("L", area.size), solid.filter(ImageFilter.MaxFilter(3)), solid)
    return Image.composite(tint, Image.composite(tint, photo, area.point(lambda grey: grey * 2 // 5)), edge)


def image_grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures in rows on white, each cell as large as the largest, captions below them (cut to the cell)."""
    if not images or columns < 1 or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images, {columns} columns, {captions and len(captions)} captions")
    gap, width, height = 4, max(image.width for image in images), max(image.height for image in images)
    font = ImageFont.load_default(max(11, width // 24))
    line = 0 if captions is None else sum(font.getmetrics()) + gap
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        corner = (gap + i % columns * (width + gap), gap + i // columns * (height + line + gap))
        sheet.paste(image, corner)
        if captions is not None:
            draw.text((corner[0], corner[1] + height), _fitting(captions[i], font, width), fill="black", font=font)
    return sheet


def to_pil(image: Tensor) -> Image.Image:
    """An image (3,h,w) in [-1,1], clipped to it -> 8-bit RGB."""
    return tv.to_pil_image(((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def mask_folder(folder: str | Path, mask_dir: str | Path | None) -> Path:
    """Where the user's masks are: `mask_dir`, or masks/ in the photo folder. UserError: one is named and not there."""
    if mask_dir is not None and not Path(mask_dir).is_dir():
        raise UserError(f"--mask_dir {mask_dir}: there is no such folder; name the one with the masks")
    return Path(mask_dir or Path(folder) / "masks")


def _photo_and_mask(
    path: Path, given: Path, made: str | Path | None, enough: int, *, binary: bool
) -> tuple[Image.Image, Image.Image | None]:
    """The upright photo, its short side `enough` pixels at least if it has them, and its mask of the same size."""
    photo = load_photo(path, enough=enough)
    file = find_mask(given, path.stem)
    if file is None and photo.alpha is not None:
        return photo.image, subject_mask(photo.alpha, path, binary=binary)
    file = file or (made and find_mask(made, path.stem))
    return photo.image, file and load_mask(file, photo, binary=binary)


def _moved(
    picture: Tensor, scale: float, angle: float, flip: bool, right: float, down: float, *, exact: bool
) -> Tensor:
    """(C,R,R) turned [degrees], flipped, scaled, then put at a share `right`, `down` of the room in an empty frame.

    `exact`: no value between those of the picture, for masks.
    """
    side = picture.shape[-1]
    near = InterpolationMode.NEAREST_EXACT if exact else InterpolationMode.BILINEAR
    turned = tv.rotate(picture, angle, InterpolationMode.NEAREST if exact else near) if angle else picture
    turned = tv.horizontal_flip(turned) if flip else turned
    size = max(1, round(scale * side))
    scaled = tv.resize(turned, [size, size], near, antialias=not exact)
    left, top = round(right * (side - size)), round(down * (side - size))
    # pad where the copy is smaller than the frame, crop where it is larger
    return F.pad(scaled, (left, side - size - left, top, side - size - top))


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.encode("latin-1", "replace").decode("latin-1").split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "..") > width:
        text = text[:-1]
    return text + ".."
