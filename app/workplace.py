"""What the app may read and write: outputs/ under the folder where it runs, and nothing else.

Each browser's photos have a folder of their own, whose name cannot be guessed.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eqdiff.data.folder import COMPANIONS, SUFFIXES, find_mask, find_photos, load_photo, photo_mask
from eqdiff.data.pictures import UNREADABLE, open_picture
from eqdiff.errors import UserError, require
from eqdiff.files import replacing
from eqdiff.ours import save_picture
from eqdiff.settings.places import ASSETS, find_class_word
from eqdiff.wording import clean

OUTPUTS = Path("outputs")
OWN = OUTPUTS / "app"
PHOTOS = OWN / "photos"
LOGS = OWN / "logs"
QUEUE = OWN / "queue.json"
CACHE = OWN / "cache"  # gradio's: uploads and what is sent to browsers
COMPARED = OWN / "compared"
LOOKS = OWN / "looks"
MOST_BYTES = 50 * 2**20  # of an upload
MOST_PIXELS = 100_000_000  # of a photo
MOST_PHOTOS = 30  # of one upload
EDITED_SIDE = 512  # pixels, longest, of a photo under the brush
CONCEPT = "concept.safetensors"


def slug(text: str, usual: str) -> str:
    """A name for a folder: letters, digits and dashes, whatever the text holds."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", str(text)).strip("-").lower()[:40].strip("-")
    return words or usual


def bundled() -> list[str]:
    """The names of the bundled subjects."""
    return sorted(path.name for path in (ASSETS / "subjects").glob("*") if path.is_dir())


def new_subject() -> Path:
    """A new folder for somebody's photos."""
    folder = PHOTOS / secrets.token_hex(8)
    (folder / "masks").mkdir(parents=True)
    return folder


def take_bundled(name: str) -> Path:
    """A copy of a bundled subject, whose masks may be changed. Raises UserError: no such."""
    require(name in bundled(), f"{clean(name)}: no bundled subject")
    folder = PHOTOS / secrets.token_hex(8)
    shutil.copytree(ASSETS / "subjects" / name, folder)
    return folder


def take_photos(files: Sequence[Path]) -> Path:
    """A folder with copies of uploaded photos.

    Raises UserError, and keeps nothing, if there are none or too many, or if one is too large or
    no picture.
    """
    require(files, "no photos; drop 3 to 6 of one subject")
    require(len(files) <= MOST_PHOTOS, f"{len(files)} photos; {MOST_PHOTOS} are the most")
    for file in files:
        require_photo(file)

    folder = new_subject()
    try:
        for number, file in enumerate(files):
            name = f"{slug(file.stem, 'photo')}{file.suffix.lower()}"
            if (folder / name).exists() or find_mask(folder, Path(name)):
                name = f"{number:02d}-{name}"
            shutil.copyfile(file, folder / name)
        find_photos(folder)
    except (UserError, OSError):
        shutil.rmtree(folder)
        raise
    return folder


def require_photo(file: Path) -> None:
    """Raises UserError, in one line that names the file alone, unless it is a photo to be taken."""
    name = clean(file.name)
    known = " ".join(sorted(SUFFIXES))
    require(file.suffix.lower() in SUFFIXES, f"{name}: no photo; give one of {known}")
    size = file.stat().st_size
    require(size <= MOST_BYTES, f"{name}: {size >> 20} MB; {MOST_BYTES >> 20} are the most")
    try:
        with open_picture(file) as picture:
            pixels = picture.width * picture.height
    except UNREADABLE:
        raise UserError(f"{name}: not readable as a picture; save it again as JPEG") from None
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from None

    most = f"{MOST_PIXELS // 10**6} million pixels are the most"
    require(pixels <= MOST_PIXELS, f"{name}: {pixels / 1e6:.0f} million pixels; {most}")
    try:
        load_photo(file, enough=EDITED_SIDE)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from None


def class_word_of(folder: Path) -> str:
    """The class word that a folder's class.txt says; "" without one."""
    try:
        return find_class_word(folder, None)
    except UserError:
        return ""


def photo_names(folder: Path) -> list[str]:
    """The names of a folder's photos."""
    return [path.name for path in find_photos(folder)]


def photo_and_mask(folder: Path, name: str) -> tuple[Image.Image, Image.Image | None]:
    """A photo for the brush, RGB, and its mask "L" of the same size; None without one.

    Raises UserError if the folder has no such photo.
    """
    photo = load_photo(_photo(folder, name), enough=EDITED_SIDE)
    mask = photo_mask(photo, [folder / "masks"])
    image = photo.image.copy()
    image.thumbnail((EDITED_SIDE, EDITED_SIDE))
    return image, mask and mask.resize(image.size, Image.Resampling.NEAREST)


def as_file(image: Image.Image) -> str:
    """A picture as a file for browsers, whole from its first moment; equal pictures are one file.

    gradio would write it in place, also over a file that another browser is just reading.
    """
    pixels = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    path = CACHE / "shown" / f"{pixels[:40]}.png"
    if not path.is_file():
        with replacing(path, shared=True) as beside:
            image.save(beside, format="PNG", compress_level=1)
    return str(path.absolute())


def change_mask(folder: Path, name: str, added: np.ndarray, taken: np.ndarray) -> Path:
    """Writes masks/<stem>.png: the photo's mask with what was added and without what was taken.

    added, taken: bool (h,w), the strokes over a photo of any size. The mask elsewhere stays as it
    is, pixel by pixel. Raises UserError if the folder has no such photo, or if nothing is left.
    """
    path = _photo(folder, name)
    photo = load_photo(path)
    size = photo.image.size
    before = photo_mask(photo, [folder / "masks"])
    mask = np.asarray(before) >= 128 if before is not None else np.zeros(size[::-1], bool)
    mask = (mask | _resized(added, size)) & ~_resized(taken, size)
    require(mask.any(), f"{path.name}: no mask is left; paint the subject")

    target = folder / "masks" / f"{path.stem}.png"
    with replacing(target) as beside:
        save_picture(Image.fromarray(mask.astype(np.uint8) * 255), beside)
    return target


def _resized(strokes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Strokes, bool, at this width and height."""
    levels = Image.fromarray(strokes.astype(np.uint8) * 255)
    return np.asarray(levels.resize(size, Image.Resampling.NEAREST)) >= 128


def _photo(folder: Path, name: str) -> Path:
    known = {path.name: path for path in find_photos(folder)}
    require(name in known and name not in COMPANIONS, f"{clean(name)}: no photo of this subject")
    return known[name]


def concepts() -> dict[str, Path]:
    """Name -> concept file, the newest first: those of trainings, then their checkpoints."""
    files = list(OUTPUTS.glob(f"*/{CONCEPT}"))
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = {path.parent.name: path for path in files}
    for folder in sorted(path for path in OUTPUTS.glob("*") if path != OWN):
        for path in sorted(folder.glob(f"checkpoints/step-*/{CONCEPT}")):
            found[f"{folder.name} / {path.parent.name}"] = path
    return found


def concept(name: str) -> Path:
    """The file of a listed concept. Raises UserError if there is none of that name."""
    known = concepts()
    require(name in known, f"{clean(name) or 'no concept'}: none of that name under {OUTPUTS}")
    return known[name]


def run_of(concept_file: Path) -> Path:
    """The folder of the training that wrote a concept or a checkpoint."""
    parents = concept_file.parents
    return parents[2] if parents[1].name == "checkpoints" else parents[0]


def new_folder(parent: Path, name: str, taken: Collection[Path] = ()) -> Path:
    """The first of name, name-2, name-3 ... that is not there or promised yet. It is not made."""
    numbered = (f"{name}-{number}" for number in range(2, 10_000))
    paths = (parent / each for each in (name, *numbered))
    return next(path for path in paths if path not in taken and not path.exists())
