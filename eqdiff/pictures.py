"""One picture file -> its pixels, upright, in 8 bits and sRGB: EXIF orientation, palettes, grey, CMYK, LAB, 16 bits,
animations, HEIC, colour profiles, pictures too large to hold."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from eqdiff.config import UserError

UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, MemoryError)
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands that files start with
AVIF = (b"avif", b"avis")
MOST_PIXELS = 300_000_000  # a phone takes 200 million; decoded they fill 1 GB
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


def read_picture(
    path: Path, enough: int | None = None, *, managed: bool = True
) -> tuple[Image.Image, int, tuple[int, int]]:
    """The first frame in 8 bits, upright; the EXIF orientation it was stored with; its full size, upright.
    managed: its colours moved to sRGB if it says that they are others."""
    try:
        with _opened(path) as file:
            stored, size = file.getexif().get(ORIENTATION, 1), file.size
            # JPEG alone: decoded at 1/2, 1/4 or 1/8, no smaller than this
            drafted = enough is not None and file.draft(None, (enough, enough)) is not None
            picture = _eight_bits(file, file.info.get("icc_profile") if managed else None)
            turn = TURNS.get(file.getexif().get(ORIENTATION, 1))  # asked again: a TIFF turns while it is read
            size = size if drafted else picture.size
            factor = min(picture.size) // enough if enough else 1
            picture = picture.reduce(factor) if factor > 1 else picture
            upright = picture.copy() if turn is None else picture.transpose(turn)
            return upright, stored if stored in TURNS else 1, size[::-1] if turn in QUARTER_TURNS else size
    except UNREADABLE as error:
        unknown = "no known format" if isinstance(error, UnidentifiedImageError) else None
        reason = unknown or getattr(error, "strerror", None) or error or "not enough memory"
        raise UserError(f"{path}: not readable as a picture ({reason}); save it again as JPEG or PNG") from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as a picture whose pixels are still to be read. UserError: HEIC without its library, too many pixels."""
    with path.open("rb") as file:
        brand = file.read(12)[8:]
    if brand in AVIF and ".avif" not in Image.registered_extensions():
        raise UserError(
            f"{path}: AVIF, and this Pillow cannot read it: pip install --upgrade pillow, or save it as JPEG"
        )
    if brand in HEIF:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise UserError(f"{path}: HEIC; to read it: pip install pillow-heif, or save it as JPEG") from None
        register_heif_opener()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's is below what phones take; ours follows
    try:
        with Image.open(path) as file:
            if file.width * file.height > MOST_PIXELS:
                raise UserError(
                    f"{path}: {file.width} x {file.height} pixels, more than {MOST_PIXELS // 10**6} million; "
                    "save it smaller"
                )
            yield file
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _eight_bits(file: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in 8-bit sRGB, "RGB" or "RGBA". profile: the ICC profile of its colours, None for sRGB."""
    file.load()
    if file.mode.startswith("I"):
        # 16-bit grey: Pillow would clip it, not scale it
        levels = np.asarray(file).clip(0, 65535)
        file = Image.fromarray((levels // 257).astype(np.uint8))
    alpha = None
    if file.has_transparency_data:
        alpha = (file if "A" in file.getbands() else file.convert("RGBA")).getchannel("A")
    picture = _in_srgb(file, profile) or (file if file.mode == "RGB" else file.convert("RGB"))
    if alpha is not None:
        picture.putalpha(alpha)
    return picture


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture's colours moved from its profile to sRGB; None: there is nothing to move, or the profile is bad."""
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        picture = picture.convert("RGB") if picture.mode == "RGBA" else picture
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
