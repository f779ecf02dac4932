"""Pictures to look at: tensors as pictures, photos with their masks, grids with captions."""

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor

from eqdiff.data.outliers import out_of_line
from eqdiff.data.subject import Subject

TINT = (255, 0, 80)
RED = (255, 0, 0)
FRAME = 50  # a frame is so many times thinner than the picture is long
GAP = 4  # between the cells of a grid [pixels]
CAPTION_LINES = 5  # at most


def to_pil(image: Tensor) -> Image.Image:
    """An image (3,h,w) in [-1,1], clipped to that range -> 8-bit RGB."""
    levels = (image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return tv.to_pil_image(levels.round().to(torch.uint8))


def overlay_sheet(subject: Subject) -> Image.Image:
    """A contact sheet to check masks by.

    Each photo is tinted and outlined where its mask is. Its name and coverage stand below it. A
    photo whose mask is out of line with the others' has a red frame.
    """
    photos = [to_pil(image) for image in subject.images]
    masks = [tv.to_pil_image(mask) for mask in subject.masks]
    reasons = out_of_line(photos, masks)

    tinted = []
    captions = []
    for i, name in enumerate(subject.names):
        cell = overlay(photos[i], masks[i])
        tinted.append(cell if reasons[i] is None else framed(cell))
        captions.append(f"{name}  {100 * subject.masks[i].mean().item():.1f} %")

    columns = min(4, math.ceil(math.sqrt(len(tinted))))
    return image_grid(tinted, columns=columns, captions=captions)


def overlay(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """An RGB photo tinted and outlined where its "L" mask of the same size is."""
    tint = Image.new("RGB", photo.size, TINT)
    tinted = Image.composite(tint, photo, mask.point(lambda grey: grey * 2 // 5))

    inside = mask.point(lambda grey: 255 if grey >= 128 else 0)
    grown = inside.filter(ImageFilter.MaxFilter(3))
    outline = Image.composite(Image.new("L", mask.size), grown, inside)
    return Image.composite(tint, tinted, outline)


def framed(picture: Image.Image) -> Image.Image:
    """The picture with a red frame inside its edges."""
    width = max(4, max(picture.size) // FRAME)
    inner = picture.crop((width, width, picture.width - width, picture.height - width))
    return ImageOps.expand(inner, width, RED)


def image_grid(
    images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None
) -> Image.Image:
    """Pictures in rows on white, each with the room of the largest picture.

    Captions stand below the pictures, in lines of that width, at most CAPTION_LINES.
    Raises ValueError if there are no pictures or columns, or another number of captions.
    """
    if not images or columns < 1 or (captions is not None and len(captions) != len(images)):
        counts = f"{len(images)} images, {columns} columns"
        raise ValueError(f"{counts}, {captions and len(captions)} captions")

    width = max(image.width for image in images)
    height = max(image.height for image in images)
    font = ImageFont.load_default(max(11, width // 24))
    texts = [_lines(caption, font, width) for caption in captions or ()]
    line = sum(font.getmetrics())
    step_right = width + GAP
    tops = [GAP]  # of the rows, then the end of the last; each is as high as its longest caption
    for first in range(0, len(images), columns):
        below = max(map(len, texts[first : first + columns]), default=0) * line
        tops.append(tops[-1] + height + below + (2 * GAP if texts else GAP))

    sheet = Image.new("RGB", (columns * step_right + GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)

    for number, image in enumerate(images):
        left = GAP + number % columns * step_right
        top = tops[number // columns]
        sheet.paste(image, (left, top))
        for row, text in enumerate(texts[number] if texts else ()):
            draw.text((left, top + height + row * line), text, fill="black", font=font)

    return sheet


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of `width` pixels, in letters that the font has, at most CAPTION_LINES.

    Where it is longer, its first paragraph is cut: the last may hold figures.
    """
    readable = text.encode("latin-1", "replace").decode("latin-1")
    lines: list[str] = []
    for paragraph in reversed(readable.splitlines()):
        left = CAPTION_LINES - len(lines)
        lines = _wrapped(paragraph, font, width, left) + lines
    return [_fitting(line, font, width) for line in lines]


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """The words of a text in at most `most` lines; the last may be wider than `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        full = font.getlength(longer) > width
        if full and lines[-1] and len(lines) < most:
            lines.append(word)
            continue

        lines[-1] = longer
        if full and len(lines) >= most:
            break  # no more of this can be seen
    return [line for line in lines if line][:most]


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text cut to `width` pixels."""
    if font.getlength(text) <= width:
        return text

    fitting = bisect_right(
        range(len(text)), width, key=lambda count: font.getlength(text[:count] + "..")
    )
    return text[: max(fitting - 1, 0)] + ".."
