"""Photo and mask files -> upright PIL pictures: EXIF orientation, alpha, palettes, CMYK, 16 bits, animations."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eqdiff.config import UserError

SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"]
    + [".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
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


class Photo(NamedTuple):
    """A photo as it is displayed.

    image: RGB, upright, what is transparent is white. alpha: "L", 255 = opaque, or None if all is opaque.
    orientation: the EXIF orientation 1..8 that the file was stored with. path: the file.
    """

    image: Image.Image
    alpha: Image.Image | None
    orientation: int
    path: Path


def find_photos(folder: str | Path) -> list[Path]:
    """The picture files right in `folder`, sorted by name; hidden files, other files and sub-folders do not count.

    UserError: no folder, no pictures, or two that differ in suffix alone (their masks would be the same file).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the one with the photos")
    photos = sorted(path for path in folder.iterdir() if _is_picture(path))
    if not photos:
        raise UserError(f"{folder}: no photos in it; put at least one there ({' '.join(sorted(SUFFIXES))})")
    seen: dict[str, Path] = {}
    for path in photos:
        twin = seen.setdefault(path.stem, path)
        if twin is not path:
            raise UserError(f"{folder}: {twin.name} and {path.name} would share one mask; rename or remove one of them")
    return photos


def load_photo(path: str | Path) -> Photo:
    """A picture file, its first frame, as it is displayed. UserError naming the file: not readable as a picture."""
    path = Path(path)
    picture, orientation = _read(path)
    image, alpha = _split_alpha(picture)
    return Photo(image, alpha, orientation, path)


def find_mask(folder: str | Path, stem: str) -> Path | None:
    """The mask `<stem>.<any picture suffix>` in `folder`, PNG before the lossy ones; None without one."""
    found = [path for path in Path(folder).glob("*") if path.stem == stem and _is_picture(path)]
    return min(found, key=lambda path: (path.suffix.lower() != ".png", path.name), default=None)


def load_mask(path: str | Path, photo: Photo, *, binary: bool = True) -> Image.Image:
    """A mask file for `photo` -> "L" of its displayed size: 0 background, 255 subject; `binary`: no grey between.

    Half grey and lighter is subject; of a cut-out, what is opaque. A mask that fits the photo's stored raster and not
    its display turns with it (where both have one size, as after a half turn, it is taken as displayed).
    UserError: unreadable, another aspect than the photo (over 1 %), or empty.
    """
    path = Path(path)
    image, alpha = _split_alpha(_read(path)[0])
    mask = alpha or image.convert("L")
    shown = photo.image.size
    stored = shown[::-1] if photo.orientation >= 5 else shown
    fits = [size for size in (shown, stored) if mask.size == size] or [
        size for size in (shown, stored) if _same_aspect(mask.size, size)
    ]
    if not fits:
        raise UserError(
            f"the mask {path} is {mask.width} x {mask.height} and its photo {photo.path} {shown[0]} x {shown[1]}: "
            "another aspect; make the mask from this very photo"
        )
    if fits[0] != shown:
        mask = mask.transpose(TURNS[photo.orientation])
    return subject_mask(mask.resize(shown, Image.Resampling.NEAREST), path, binary=binary)


def subject_mask(mask: Image.Image, path: Path, *, binary: bool = True) -> Image.Image:
    """An "L" mask or alpha channel, cut at half grey if `binary`. UserError naming `path`: all is darker."""
    lightest = mask.getextrema()[1]
    if lightest < 128:
        raise UserError(
            f"{path}: the mask is empty (its lightest pixel is {lightest} of 255); paint the subject white on black"
        )
    return mask.point(lambda grey: 255 if grey >= 128 else 0) if binary else mask


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    ratio = (size[0] * other[1]) / (size[1] * other[0])
    return 1 / 1.01 <= ratio <= 1.01


def _read(path: Path) -> tuple[Image.Image, int]:
    """The first frame in 8 bits, upright, and the EXIF orientation it was stored with."""
    try:
        with Image.open(path) as file:
            orientation = file.getexif().get(ORIENTATION, 1)
            upright = ImageOps.exif_transpose(file)
            upright.load()
            if upright.mode.startswith("I"):
                # 16-bit grey: Pillow would clip it, not scale it
                levels = np.asarray(upright).clip(0, 65535)
                upright = Image.fromarray((levels // 257).astype(np.uint8))
            has_alpha = upright.has_transparency_data
            return upright.convert("RGBA" if has_alpha else "RGB"), orientation if orientation in TURNS else 1
    except UNREADABLE as error:
        unknown = "no known format" if isinstance(error, UnidentifiedImageError) else None
        reason = unknown or getattr(error, "strerror", None) or error
        raise UserError(f"{path}: not readable as a picture ({reason}); save it again as JPEG or PNG") from None


def _split_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGBA -> RGB on white, alpha; RGB -> itself, None."""
    if picture.mode != "RGBA":
        return picture, None
    alpha = picture.getchannel("A")
    white = Image.new("RGBA", picture.size, "white")
    image = Image.alpha_composite(white, picture).convert("RGB")
    return image, alpha if alpha.getextrema()[0] < 255 else None
