"""A folder's photos and their masks: which files they are, and how each is read."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eqdiff.data.pictures import TURNS, memory_named, read_picture
from eqdiff.errors import UserError

SUFFIXES = frozenset(
    [".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg"]
    + [".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)
MOST_PHOTOS = 200  # of one subject
COMPANIONS = ("masks", "class.txt", "instance.json")  # belong in a photo folder too
LISTED = 8  # file names in one message


class Photo(NamedTuple):
    """A photo as it is displayed.

    image: "RGB" in sRGB, upright, white where it is transparent. alpha: "L", 255 = opaque; None if
    all of it is opaque. orientation: the EXIF orientation 1..8 of the file. path: the file. size:
    width and height of the whole picture, upright; `image` is smaller if it was reduced.
    """

    image: Image.Image
    alpha: Image.Image | None
    orientation: int
    path: Path
    size: tuple[int, int]


def pictures_in(folder: str | Path) -> list[Path]:
    """What counts as a picture in any folder: its picture files, sorted by name.

    The suffix decides. Empty files, hidden files and sub-folders do not count.
    """
    files = [path for path in Path(folder).iterdir() if _is_picture(path)]
    return sorted(path for path in files if path.stat().st_size)


def find_photos(folder: str | Path) -> list[Path]:
    """The pictures in `folder` itself, sorted by name.

    Raises UserError if there is no such folder, if it has no pictures, if a name is not UTF-8, or
    if two names differ in their suffix alone: their masks would be the same file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the one with the photos")

    photos = pictures_in(folder)
    if not photos:
        suffixes = " ".join(sorted(SUFFIXES))
        raise UserError(f"{folder}: no photos in it; put at least one there ({suffixes})")

    first_of: dict[str, Path] = {}
    for path in photos:
        if not path.name.isascii() and path.name != path.name.encode(errors="replace").decode():
            raise UserError(f"{path!r}: its name is not UTF-8; rename the file")

        first = first_of.setdefault(path.stem, path)
        if first is not path:
            both = f"{first.name} and {path.name}"
            remedy = "rename or remove one of them"
            raise UserError(f"{folder}: {both} would share one mask; {remedy}")

    return photos


def subject_photos(folder: str | Path) -> list[Path]:
    """`find_photos` of one subject.

    Raises UserError as that does, and if there are more photos than one subject needs.
    """
    photos = find_photos(folder)
    if len(photos) > MOST_PHOTOS:
        limits = f"3 to 6 of one subject are enough, {MOST_PHOTOS} the most"
        raise UserError(f"{folder}: {len(photos)} photos in it; {limits}")
    return photos


def folder_warnings(folder: str | Path, photos: Sequence[Path]) -> list[str]:
    """What the user should know of a photo folder, a line for each warning.

    There is a warning for the files that are no photos, and one for each photo that is there more
    than once, byte for byte.
    """
    lines = []
    present = {path.name for path in Path(folder).iterdir()}
    others = sorted(present - {path.name for path in photos} - set(COMPANIONS))
    if others:
        count = len(others)
        lines.append(f"{folder}: {count} in it that are no photos, ignored: {listed(others)}")

    # a file whose size no other file has is not read: it cannot have a copy
    copies: dict[tuple[int, str], list[str]] = {}
    sizes = [path.stat().st_size for path in photos]
    for path, size in zip(photos, sizes, strict=True):
        if sizes.count(size) > 1:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            copies.setdefault((size, digest), []).append(path.name)

    for names in copies.values():
        if len(names) > 1:
            count = len(names)
            lines.append(f"{folder}: {listed(names)} are one photo, which counts {count} times")

    return lines


def load_photo(path: str | Path, *, enough: int | None = None) -> Photo:
    """The first frame of a picture file, as it is displayed.

    enough: the short side [pixels] that is needed. Larger pictures are reduced by whole factors
    while they are read, never below it: memory follows what is needed, not what the camera had. A
    picture of over 64 million pixels is reduced in any case.

    Raises UserError that names the file if it is not readable as a picture, or would take more than
    1.5 GB to read.
    """
    path = Path(path)
    picture = read_picture(path, enough)
    return Photo(picture.image, picture.alpha, picture.orientation, path, picture.size)


def find_mask(folder: str | Path, photo: Path) -> Path | None:
    """The mask of a photo 00.jpg in `folder`: 00.<any picture suffix>, or 00.jpg.<any>.

    None without one. The first form comes before the second, and a PNG before the other formats,
    which may be lossy.
    """
    names = (photo.stem, photo.name)
    matches = [path for path in Path(folder).glob("*") if path.stem in names and _is_picture(path)]

    def rank(path: Path) -> tuple[int, bool, str]:
        return names.index(path.stem), path.suffix.lower() != ".png", path.name

    return min(matches, key=rank, default=None)


def stray_masks(mask_folder: str | Path, photos: Sequence[Path]) -> str | None:
    """A warning that names the files in a mask folder that no photo takes; None without such.

    Hidden files and sub-folders do not count. photos: all that the masks may belong to.
    """
    taken = {photo: find_mask(mask_folder, photo) for photo in photos}
    files = [path for path in Path(mask_folder).glob("[!.]*") if path.is_file()]
    strays = sorted(path.name for path in files if path not in taken.values())
    if not strays:
        return None

    bare = [photo for photo in photos if taken[photo] is None]
    photo = (bare or list(photos))[0]
    example = f"the mask of {photo.name} is {photo.stem}.png"
    return f"{mask_folder}: no photo's masks, ignored: {listed(strays)}; {example}"


def load_mask(path: str | Path, photo: Photo, *, binary: bool = True) -> Image.Image:
    """The mask of `photo` in a file: "L" of the size of its image, 0 background, 255 subject.

    Half grey and lighter is subject; in a cut-out, what is opaque. binary: no grey is left, but for
    what the reduction of a reduced photo makes.

    A mask that fits the photo as it is stored, and not as it is displayed, is turned with it. If
    both have the same size, as after a half turn, the mask counts as displayed.

    Raises UserError if it is unreadable or empty, or if its aspect differs by more than 1 %.
    """
    path = Path(path)
    with memory_named(path):
        return _fitted_mask(path, photo, binary)


def _fitted_mask(path: Path, photo: Photo, binary: bool) -> Image.Image:
    picture = read_picture(path, is_mask=True)
    mask = picture.alpha or picture.image

    displayed = photo.size
    stored = displayed[::-1] if photo.orientation >= 5 else displayed
    sizes = (displayed, stored)
    matches = [size for size in sizes if mask.size == size]
    matches = matches or [size for size in sizes if _same_aspect(mask.size, size)]
    if not matches:
        raise UserError(
            f"the mask {path} is {mask.width} x {mask.height} and its photo {photo.path} "
            f"{displayed[0]} x {displayed[1]}: another aspect; make the mask from this very photo"
        )

    if matches[0] != displayed:
        mask = mask.transpose(TURNS[photo.orientation])
    if mask.size != displayed:
        mask = mask.resize(displayed, Image.Resampling.NEAREST)
    mask = subject_mask(mask, path, binary=binary)
    if photo.image.size == displayed:
        return mask
    return mask.resize(photo.image.size, Image.Resampling.BOX)


def photo_mask(
    photo: Photo, folders: Sequence[str | Path], *, binary: bool = True
) -> Image.Image | None:
    """The mask of a photo, "L" of the size of its image; None without any.

    It is a file of the first folder, which is the user's, else the photo's alpha channel, else a
    file of the other folders. binary: see `load_mask`.

    Raises UserError if it is unreadable, empty, or of another aspect than the photo.
    """
    files = [find_mask(folder, photo.path) for folder in folders]
    users_file = files[0] if files else None
    if users_file is None and photo.alpha is not None:
        return subject_mask(photo.alpha, photo.path, binary=binary)

    file = next((file for file in files if file is not None), None)
    return file and load_mask(file, photo, binary=binary)


def subject_mask(mask: Image.Image, path: Path, *, binary: bool = True) -> Image.Image:
    """An "L" mask or alpha channel. binary: cut at half grey.

    Raises UserError that names `path` if all of it is darker than half grey.
    """
    lightest = mask.getextrema()[1]
    if lightest < 128:
        empty = f"the mask is empty (its lightest pixel is {lightest} of 255)"
        raise UserError(f"{path}: {empty}; paint the subject white on black")

    return mask.point(lambda grey: 255 if grey >= 128 else 0) if binary else mask


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether width / height of two sizes differ by 1 % at most."""
    ratio = (size[0] * other[1]) / (size[1] * other[0])
    return 1 / 1.01 <= ratio <= 1.01


def listed(names: Sequence[str]) -> str:
    """The first names, with commas, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
