"""A folder's photos and their masks: which files they are, and each as it is displayed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eqdiff.config import UserError
from eqdiff.pictures import TURNS, read_picture

SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"]
    + [".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
MOST_PHOTOS = 200  # of one subject
COMPANIONS = ("masks", "class.txt", "instance.json")  # what belongs into a photo folder beside the photos


class Photo(NamedTuple):
    """A photo as it is displayed.

    image: sRGB, upright, what is transparent is white. alpha: "L", 255 = opaque, or None if all is opaque.
    orientation: the EXIF orientation 1..8 that the file was stored with. path: the file.
    size: of the whole picture, upright; that of `image` where it was not reduced.
    """

    image: Image.Image
    alpha: Image.Image | None
    orientation: int
    path: Path
    size: tuple[int, int]


def find_photos(folder: str | Path) -> list[Path]:
    """The picture files right in `folder`, sorted by name; empty and hidden files, others and sub-folders do not count.

    UserError: no folder, no pictures, or two that differ in suffix alone (their masks would be the same file).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the one with the photos")
    photos = sorted(path for path in folder.iterdir() if _is_picture(path) and path.stat().st_size)
    if not photos:
        raise UserError(f"{folder}: no photos in it; put at least one there ({' '.join(sorted(SUFFIXES))})")
    seen: dict[str, Path] = {}
    for path in photos:
        if not path.name.isascii() and path.name != path.name.encode(errors="replace").decode():
            raise UserError(f"{path!r}: its name is not UTF-8; rename the file")
        twin = seen.setdefault(path.stem, path)
        if twin is not path:
            raise UserError(f"{folder}: {twin.name} and {path.name} would share one mask; rename or remove one of them")
    return photos


def subject_photos(folder: str | Path) -> list[Path]:
    """`find_photos` of one subject. UserError: what that refuses, or more than anybody takes of one."""
    photos = find_photos(folder)
    if len(photos) > MOST_PHOTOS:
        raise UserError(
            f"{folder}: {len(photos)} photos in it; 3 to 6 of one subject are enough, {MOST_PHOTOS} the most"
        )
    return photos


def remarks(folder: str | Path, photos: Sequence[Path]) -> list[str]:
    """What somebody should know of a photo folder: a line for what else lies there, a line for each photo that is there
    more than once, byte for byte."""
    others = sorted({path.name for path in Path(folder).iterdir()} - {path.name for path in photos} - set(COMPANIONS))
    lines = [f"{folder}: {len(others)} in it that are no photos, ignored: {_listed(others)}"] if others else []
    groups: dict[tuple[int, str], list[str]] = {}
    sizes = [path.stat().st_size for path in photos]
    for path, size in zip(photos, sizes, strict=True):
        if sizes.count(size) > 1:
            groups.setdefault((size, hashlib.sha256(path.read_bytes()).hexdigest()), []).append(path.name)
    same = [names for names in groups.values() if len(names) > 1]
    return lines + [f"{folder}: {_listed(names)} are one photo, which counts {len(names)} times" for names in same]


def load_photo(path: str | Path, *, enough: int | None = None) -> Photo:
    """A picture file, its first frame, as it is displayed. UserError naming the file: not readable as a picture.

    enough: a short side [pixels] that will do: larger pictures are reduced while they are read, by whole factors and
    never below it, so that memory follows what is needed and not what the camera had.
    """
    path = Path(path)
    picture, orientation, size = read_picture(path, enough)
    image, alpha = _split_alpha(picture)
    return Photo(image, alpha, orientation, path, size)


def find_mask(folder: str | Path, stem: str) -> Path | None:
    """The mask `<stem>.<any picture suffix>` in `folder`, PNG before the lossy ones; None without one."""
    found = [path for path in Path(folder).glob("*") if path.stem == stem and _is_picture(path)]
    return min(found, key=lambda path: (path.suffix.lower() != ".png", path.name), default=None)


def load_mask(path: str | Path, photo: Photo, *, binary: bool = True) -> Image.Image:
    """A mask file for `photo` -> "L" of its image's size: 0 background, 255 subject; `binary`: no grey between, but
    what the reduction of a reduced photo makes.

    Half grey and lighter is subject; of a cut-out, what is opaque. A mask that fits the photo's stored raster and not
    its display turns with it (where both have one size, as after a half turn, it is taken as displayed).
    UserError: unreadable, another aspect than the photo (over 1 %), or empty.
    """
    path = Path(path)
    image, alpha = _split_alpha(read_picture(path, managed=False)[0])
    mask = alpha or image.convert("L")
    shown = photo.size
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
    mask = subject_mask(mask.resize(shown, Image.Resampling.NEAREST), path, binary=binary)
    return mask if photo.image.size == shown else mask.resize(photo.image.size, Image.Resampling.BOX)


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


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _split_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGBA -> RGB on white, alpha; RGB -> itself, None."""
    if picture.mode != "RGBA":
        return picture, None
    alpha = picture.getchannel("A")
    white = Image.new("RGBA", picture.size, "white")
    image = Image.alpha_composite(white, picture).convert("RGB")
    return image, alpha if alpha.getextrema()[0] < 255 else None
