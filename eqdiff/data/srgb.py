"""The samples of a picture as they are stored -> 8-bit sRGB.

Depths: 1, 8, 12, 16 and 32 bits and floats; what has no certain range is refused, not guessed.
Colours: by the embedded profile itself, whatever it calls itself, in every mode. Without a profile
a picture is taken as sRGB, and CMYK as ideal inks, with a warning.
"""

import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from eqdiff.errors import UserError, reason_of

LOG = logging.getLogger(__name__)
# TIFF tags
PHOTOMETRIC = 262  # 0: the lowest sample is white
SAMPLE_FORMAT = 339  # 2: signed
# the value of white where a file says so; by a part of Pillow's name for how samples are packed
WHITES = {"I;12": 4095, "I;16S": 32767, "I;16BS": 32767}
OVERSHOOT = 0.05  # of white, that floats may lie outside of black to white
PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


@dataclass(frozen=True)
class Depth:
    """The range of stored samples.

    whites: values that white may have, ascending. checked: whether the samples must be seen to use
    that range; not for plain 8 bits. inverted: the lowest value is white.
    """

    whites: tuple[int, ...] = (255,)
    checked: bool = False
    inverted: bool = False


def depth_of(file: Image.Image) -> Depth:
    """The depth of a picture whose pixels are not read yet.

    Raises ValueError for samples that Pillow misreads.
    """
    packing = str(getattr(file, "tile", ""))
    is_tiff = isinstance(file, TiffImageFile)
    if not _is_wide(file):
        if is_tiff and 2 in file.tag_v2.get(SAMPLE_FORMAT, ()):
            raise ValueError("its samples are signed")
        # of 16 bits of colour Pillow keeps the upper 8; little ink is no sign of fewer bits
        return Depth(checked=";16" in packing and file.mode != "CMYK")

    # Pillow inverts 8 bits alone
    inverted = is_tiff and file.tag_v2.get(PHOTOMETRIC) == 0
    known = next((white for name, white in WHITES.items() if name in packing), None)
    if known is not None:
        return Depth((known,), True, inverted)
    if file.mode == "F":
        return Depth((1, 255, 65535), True, inverted)
    if file.mode == "I" and is_tiff:
        return Depth((255, 65535), True, inverted)
    return Depth((65535,), True, inverted)


def white_of(depth: Depth, strips: Iterable[Image.Image]) -> int:
    """The value of white in a picture, given as strips.

    Raises ValueError if its samples fit no range, or use less than a quarter of it: a file of 16
    bits may hold 12, or a photo that is nearly black. Nothing in it tells which.
    """
    if not depth.checked:
        return depth.whites[-1]

    ranges = [_extremes(strip) for strip in strips]
    lowest = min(low for low, _ in ranges)
    highest = max(high for _, high in ranges)
    for white in depth.whites:
        slack = OVERSHOOT * white if isinstance(highest, float) else 0
        if -slack <= lowest and highest <= white + slack:
            break
    else:
        raise ValueError(f"its samples are {lowest:g} to {highest:g}, a range nobody knows")

    if 0 < highest < white / 4:
        raise ValueError(
            f"its lightest sample is {highest:g} of {white}: "
            "it has fewer bits than it says, or is nearly black"
        )
    return white


def to_8_bits(strip: Image.Image, depth: Depth, white: int) -> Image.Image:
    """A strip of any mode with 8 bits a sample. Grey keeps a transparent value, as "LA"."""
    if not _is_wide(strip):
        return strip

    samples = np.asarray(strip)
    if strip.mode == "F":
        levels = (samples * (255 / white)).clip(0, 255).round()
    else:
        levels = samples.astype(np.int32) * 255 // white
    grey = Image.fromarray(levels.astype(np.uint8))
    grey = grey.point(lambda level: 255 - level) if depth.inverted else grey

    transparent = strip.info.get("transparency")
    if transparent is not None:
        alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(alpha))
    return grey


def split_alpha(strip: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An 8-bit strip as "L", "RGB", "CMYK" or "LAB", and its alpha channel, "L"."""
    alpha = None
    if strip.has_transparency_data:
        strip = strip if strip.mode in ("LA", "RGBA") else strip.convert("RGBA")
        alpha = strip.getchannel("A")

    if strip.mode in ("1", "LA"):
        return strip.convert("L"), alpha
    return (strip if strip.mode in ("L", "CMYK", "LAB") else strip.convert("RGB")), alpha


class ToSRGB:
    """Colours of one picture, "L", "RGB", "CMYK" or "LAB" -> "RGB" in sRGB.

    file: the picture; its pixels need not be read. path: its file, for messages.

    A profile that is damaged or of other colours does not serve: there is a warning, and UserError
    is raised if the picture is CMYK, whose colours are then not known.
    """

    def __init__(self, file: Image.Image, path: Path) -> None:
        self.transform = None
        is_cmyk = file.mode == "CMYK"
        profile = file.info.get("icc_profile")
        if file.mode == "LAB" or not profile:  # LAB is absolute
            if is_cmyk:
                LOG.warning("%s: CMYK without a profile of its inks: its colours are a guess", path)
            return

        try:
            self.transform = _transform(profile, file.mode)
        except PROFILE_ERRORS as error:
            problem = f"its colour profile does not serve ({reason_of(error)})"
            if is_cmyk:
                raise UserError(f"{path}: CMYK, and {problem}; save it as RGB") from None
            LOG.warning("%s: %s; it is read as sRGB", path, problem)

    def __call__(self, colours: Image.Image) -> Image.Image:
        if self.transform is None:
            return colours.convert("RGB")

        if self.transform.input_mode == "L" and colours.mode == "RGB":
            # greys in a container that has no grey, such as WebP
            greys = Image.linear_gradient("L").crop((0, 0, 1, 256))
            curve = ImageCms.applyTransform(greys, self.transform).getchannel("R")
            return colours.point(list(curve.tobytes()) * 3)

        if colours.mode != self.transform.input_mode:
            colours = colours.convert(self.transform.input_mode)
        return ImageCms.applyTransform(colours, self.transform)


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an ICC profile to sRGB, for a picture of this mode; None if it is sRGB already.

    A grey picture may have an RGB profile: it has that profile's neutral colours. An RGB picture
    may have a grey profile: it has that profile's curve.
    Raises one of PROFILE_ERRORS if it is damaged or of other colours than the picture's.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    inputs = {"CMYK": "CMYK"} if mode == "CMYK" else {"GRAY": "L", "RGB": "RGB"}
    if space not in inputs:
        raise ValueError(f"its colours are {space}, the picture's {mode}")

    transform = ImageCms.buildTransform(source, _srgb(), inputs[space], "RGB")
    probe = _lattice().convert(inputs[space])
    same = space != "CMYK" and _difference(ImageCms.applyTransform(probe, transform), probe) <= 1
    return None if same else transform


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _lattice() -> Image.Image:
    """Colours on a grid, "RGB", greys among them."""
    steps = np.round(np.linspace(0, 255, 18)).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    return Image.fromarray(grid.reshape(18, -1, 3))


def _difference(picture: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures in any channel, as RGB."""
    levels = [np.asarray(image.convert("RGB"), np.int16) for image in (picture, other)]
    return int(np.abs(levels[0] - levels[1]).max())


def _is_wide(picture: Image.Image) -> bool:
    """Whether samples have more than 8 bits: "I", "I;16", "I;16B", "F" and the like."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _extremes(strip: Image.Image) -> tuple[float, float]:
    """The lowest and highest sample of a strip, alpha left out."""
    if strip.mode == "F":
        samples = np.asarray(strip)
        return float(samples.min()), float(samples.max())
    if _is_wide(strip):
        samples = np.asarray(strip)
        return int(samples.min()), int(samples.max())

    ranges = strip.convert("RGB").getextrema()
    return min(low for low, _ in ranges), max(high for _, high in ranges)
