"""One picture file -> its pixels, upright, in 8 bits and sRGB. No other place opens pictures.

Handles EXIF orientation and animations here, depths and colours in `srgb`, memory in `decode`.
"""

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from eqdiff.data.decode import Rows, decode, require_room, strips
from eqdiff.data.srgb import ToSRGB, depth_of, split_alpha, to_8_bits, white_of
from eqdiff.errors import UserError, lacks_memory, reason_of

# what Pillow raises for files that are damaged or have tags of odd types
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)
# the brands that files of these formats start with
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF = (b"avif", b"avis")
MOST_BRANDS = 1000  # bytes of the list of brands that are looked at
# The formats that are read, recognized by content and not by name. Pillow knows 40 more. For one of
# them, EPS, it starts Ghostscript, which runs the file.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "HEIF")
MOST_PIXELS = 300_000_000  # a phone takes 200 million
MOST_ASPECT = 2000  # length to width
MOST_KEPT = 64_000_000  # pixels of a photo that stay in memory
ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> what turns the stored raster upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}


class Picture(NamedTuple):
    """The first frame of a picture file, upright.

    image: "RGB" in sRGB, white where it is transparent; of a mask "L". alpha: "L", 255 = opaque;
    None if all of it is opaque. orientation: the EXIF orientation 1..8 of the file. size: width and
    height of the whole picture; image and alpha are smaller if they were reduced.
    """

    image: Image.Image
    alpha: Image.Image | None
    orientation: int
    size: tuple[int, int]


def read_picture(path: Path, enough: int | None = None, *, is_mask: bool = False) -> Picture:
    """Reads a picture file. It takes at most 1.5 GB, or is refused before it is decoded.

    enough: the short side [pixels] that is needed. A larger picture is reduced by a whole factor,
    not below that. One of over 64 million pixels is reduced in any case. is_mask: it is not
    reduced, and read as grey levels of no colour space.

    Raises UserError if the file is not readable as a picture, or too large.
    """
    with memory_named(path):
        try:
            with open_picture(path) as file:
                picture, turn = _read(file, path, enough, is_mask)
        except UNREADABLE as error:
            if lacks_memory(error):
                raise
            unknown = "no known format" if isinstance(error, UnidentifiedImageError) else None
            reason = unknown or getattr(error, "strerror", None) or reason_of(error)
            remedy = "save it again as JPEG or PNG"
            raise UserError(f"{path}: not readable as a picture ({reason}); {remedy}") from None

        del file  # its pixels
        return _turned(picture, turn)


@contextmanager
def memory_named(path: Path) -> Iterator[None]:
    """Raises UserError that names the file where the memory does not suffice to read it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not lacks_memory(error):
            raise
        remedy = "close other programs, or save it smaller"
        raise UserError(f"{path}: not enough memory to read it; {remedy}") from None


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """The file as a picture whose pixels are not read yet.

    Raises UserError if it is HEIC or AVIF and the library for that is missing, or if it has too
    many pixels or is too long for its width. If it is no picture in one of FORMATS, Pillow's errors
    are raised.
    """
    _require_its_library(path)

    # Pillow's own limit is below the size of phones' photos: ours stands in for it
    pillows_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]  # not every Pillow has AVIF
        with warnings.catch_warnings(), Image.open(path, formats=known) as file:
            warnings.simplefilter("ignore")  # of damaged EXIF data, which costs no pixel
            size = f"{file.width} x {file.height} pixels"
            if file.width * file.height > MOST_PIXELS:
                most = f"{MOST_PIXELS // 10**6} million"
                raise UserError(f"{path}: {size}, more than {most}; save it smaller")
            if max(file.size) > MOST_ASPECT * min(file.size):
                raise UserError(f"{path}: {size}, a line and no picture; crop or remove it")
            yield file
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_limit


def _require_its_library(path: Path) -> None:
    """Makes Pillow read HEIC. Raises UserError if the file is HEIC or AVIF and nothing reads it."""
    with path.open("rb") as file:
        head = file.read(MOST_BRANDS)
    if head[4:8] != b"ftyp":
        return

    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12]] + [head[i : i + 4] for i in range(16, min(length, len(head)), 4)]
    if any(brand in AVIF for brand in brands):
        if ".avif" not in Image.registered_extensions():
            remedy = "pip install --upgrade pillow, or save it as JPEG"
            raise UserError(f"{path}: AVIF, and this Pillow cannot read it: {remedy}")
        return

    if any(brand in HEIF for brand in brands):
        try:
            from pillow_heif import register_heif_opener  # not a requirement
        except ImportError:
            remedy = "pip install pillow-heif, or save it as JPEG"
            raise UserError(f"{path}: HEIC; to read it: {remedy}") from None
        register_heif_opener()


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation 1..8 of the pixels; 1 also if the EXIF data is damaged."""
    try:
        orientation = file.getexif().get(ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return orientation if orientation in TURNS else 1


def _read(
    file: Image.Image, path: Path, enough: int | None, is_mask: bool
) -> tuple[Picture, Image.Transpose | None]:
    """An open picture as it is decoded, and what turns it upright. Arguments: `read_picture`."""
    whole = file.size
    pixels = whole[0] * whole[1]
    factor = 1 if is_mask else _factor(whole, enough)
    kept = 2 * pixels if is_mask else 5 * pixels // factor**2  # image and alpha
    require_room(file, path, factor, kept)

    depth = depth_of(file)
    to_srgb = None if is_mask else ToSRGB(file, path)
    # Pillow turns a TIFF while it decodes it, and decodes a PNG when it is asked for EXIF data
    turned = _orientation(file) if file.format == "TIFF" else None
    rows, size = decode(file, path, factor)
    orientation = _orientation(file)
    whole = size if sorted(size) == sorted(whole) else whole
    white = white_of(depth, (rows(top, bottom) for top, bottom in strips(size)))

    def displayed(top: int, bottom: int) -> tuple[Image.Image, Image.Image | None]:
        colours, alpha = split_alpha(to_8_bits(rows(top, bottom), depth, white))
        return (to_srgb(colours) if to_srgb else colours.convert("L")), alpha

    factor = 1 if is_mask else _factor(size, enough)
    image, alpha = _assembled(displayed, size, factor, "L" if is_mask else "RGB")
    return Picture(image, alpha, turned or orientation, whole), TURNS.get(orientation)


def _factor(size: tuple[int, int], enough: int | None) -> int:
    """The whole number by which a picture of this width and height is reduced."""
    for_side = min(size) // enough if enough else 1
    for_memory = math.ceil(math.sqrt(size[0] * size[1] / MOST_KEPT))
    return max(1, for_side, for_memory)


def _assembled(
    displayed: Rows, size: tuple[int, int], factor: int, mode: str
) -> tuple[Image.Image, Image.Image | None]:
    """Picture and alpha channel from strips, each reduced and laid on white; None: opaque."""
    reduced = (-(-size[0] // factor), -(-size[1] // factor))
    image = Image.new(mode, reduced)
    alpha = None
    for top, bottom in strips(size, factor):
        strip, opacity = displayed(top, bottom)
        if opacity is not None and opacity.getextrema()[0] < 255:
            alpha = alpha or Image.new("L", reduced, 255)
            alpha.paste(opacity.reduce(factor), (0, top // factor))
            strip = Image.composite(strip, Image.new(mode, strip.size, "white"), opacity)
        image.paste(strip.reduce(factor), (0, top // factor))
    return image, alpha


def _turned(picture: Picture, turn: Image.Transpose | None) -> Picture:
    if turn is None:
        return picture

    image = picture.image.transpose(turn)
    alpha = picture.alpha and picture.alpha.transpose(turn)
    size = picture.size[::-1] if turn in QUARTER_TURNS else picture.size
    return Picture(image, alpha, picture.orientation, size)
