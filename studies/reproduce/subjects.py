"""The subjects of a reproduction: a folder of photos each, as DreamBooth's, or the toybox's own.

Each is copied into a folder of ours with whatever a training needs: photos, a mask for every one of
them, the class word. The user's folders are never written to.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eqdiff.data.folder import find_mask, pictures_in, subject_photos
from eqdiff.errors import UserError, require
from eqdiff.files import replacing
from eqdiff.masks.make import SHEET, default_device, make_masks
from eqdiff.settings.masks import MaskConfig
from eqdiff.settings.places import find_class_word
from studies.reproduce.dreambench import Prompts, prompts_in
from toybox.instances import CLASS_NAMES
from toybox.make_subjects import write_subject

# the 30 subjects of DreamBooth's data set and the cat toy, by the names of their folders
CLASS_WORDS: dict[str, str] = {
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "cat_toy": "cat toy",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
LIVE_WORDS = ("cat", "dog")  # class words of what lives: the others are objects
TOYBOX_COUNT = 4
FIRST_PHOTO = 7000  # seed of a toybox subject's first photo, as in the other studies


@dataclass(frozen=True)
class Subject:
    """A subject as cells take it.

    folder: ours. digest: of photos, masks and class word. prompts: of its own, (text, kind) pairs;
    without any it has those of the paper.
    """

    name: str
    class_word: str
    folder: Path
    digest: str
    prompts: Prompts = ()

    @property
    def live(self) -> bool:
        return self.class_word in LIVE_WORDS


def find_subjects(root: Path) -> list[Path]:
    """The folders with photos in a folder, by name; masks/ and hidden folders do not count.

    Raises UserError if there is no such folder, or none with photos in it.
    """
    require(
        root.is_dir(), f"--subjects {root}: there is no such folder; name one with photos in it"
    )
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    folders = [path for path in folders if path.name != "masks" and path.name[0] != "."]
    found = [path for path in folders if pictures_in(path)]

    layout = "it must hold a folder of photos for each subject, as DreamBooth's does"
    require(found, f"--subjects {root}: no folder with photos in it; {layout}")
    return found


def class_word_of(folder: Path) -> str:
    """What a folder's photos show: as class.txt in it says, else as our table knows its name.

    Raises UserError if neither says so.
    """
    if not (folder / "class.txt").is_file():
        word = CLASS_WORDS.get(folder.name)
        require(
            word, f"{folder}: what is in its photos is not known; write it into class.txt there"
        )
        return word
    return find_class_word(folder, None)


def prepared(folders: Sequence[Path], work: Path) -> tuple[list[Subject], list[Path]]:
    """The subjects of these folders, copied below `work`, and the sheets of masks made now.

    Raises UserError if photos cannot be used, or if a mask cannot be made.
    """
    subjects = []
    sheets = []
    for folder in folders:
        word = class_word_of(folder)
        target = work / folder.name
        made = _copy(folder, target, word)
        if made:
            sheets.append(target / "made" / SHEET)
        digest = digest_of(target, word)
        subjects.append(Subject(folder.name, word, target, digest, prompts_in(folder)))
    return subjects, sheets


def _copy(folder: Path, target: Path, word: str) -> bool:
    """Copies photos and masks, and makes those that are missing. Whether masks were ever made."""
    photos = subject_photos(folder)
    masks = {photo: find_mask(folder / "masks", photo) for photo in photos}
    extras = [folder / name for name in ("class.txt", "instance.json")]
    made = target / "made"

    wanted = [(photo, target / photo.name) for photo in photos]
    wanted += [(mask, target / "masks" / mask.name) for mask in masks.values() if mask]
    wanted += [(extra, target / extra.name) for extra in extras if extra.is_file()]
    for source, copy in wanted:
        _put(source, copy)
    _remove_others(target, {photo.stem for photo in photos})
    if all(masks.values()):
        return False

    config = MaskConfig(overwrite=True)
    given = [target / "masks", made]
    make_masks(target, config, made, word=word, given=given, device=default_device(), quiet=True)
    for mask in pictures_in(made) if made.is_dir() else ():
        _put(mask, target / "masks" / mask.name)
    return (made / SHEET).is_file()


def _put(source: Path, copy: Path) -> None:
    """Copies a file unless it is there: a cell of another process may be reading it."""
    content = source.read_bytes()
    if not (copy.is_file() and copy.read_bytes() == content):
        with replacing(copy, shared=True) as beside:
            beside.write_bytes(content)


def _remove_others(target: Path, stems: set[str]) -> None:
    """Removes copies of photos and masks that the user has taken out since."""
    (target / "masks").mkdir(parents=True, exist_ok=True)
    for path in (*pictures_in(target), *pictures_in(target / "masks")):
        if path.stem not in stems and Path(path.stem).stem not in stems:
            path.unlink()


def toybox(count: int, work: Path, table: str = "test") -> list[Subject]:
    """The first subjects of a table of the toybox, drawn below `work`."""
    subjects = []
    for class_name, index in of_toybox(count):
        folder = work / ("" if table == "test" else table) / f"{class_name}_{index}"
        if not (folder / "instance.json").is_file():
            write_subject(folder, table, class_name, index, first=FIRST_PHOTO)
        digest = digest_of(folder, class_name)
        subjects.append(Subject(folder.name, class_name, folder, digest))
    return subjects


def of_toybox(count: int) -> list[tuple[str, int]]:
    """(class, index in its table) of the first subjects of the toybox: the classes in turn."""
    classes = len(CLASS_NAMES)
    return [(CLASS_NAMES[n % classes], n // classes) for n in range(count)]


def digest_of(folder: Path, word: str) -> str:
    """16 hex digits of a prepared folder's photos and masks, and of the class word."""
    digest = hashlib.sha256(word.encode())
    for path in (*pictures_in(folder), *pictures_in(folder / "masks")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def require_approved(sheets: Sequence[Path], work: Path, approved: bool) -> None:
    """Remembers that masks are approved. Raises UserError if some were made and are not."""
    note = work / "approved.txt"
    known = note.read_text(encoding="utf-8").split("\n") if note.is_file() else []
    marks = {sheet: hashlib.sha256(sheet.read_bytes()).hexdigest() for sheet in sheets}
    fresh = [sheet for sheet, mark in marks.items() if mark not in known]
    if not fresh:
        return
    if not approved:
        raise UserError(
            f"masks of {len(fresh)} subjects were made: look at {fresh[0]} "
            f"and those beside it, then add --approve_masks, or give masks of your own"
        )
    note.write_text("\n".join([*known, *marks.values()]), encoding="utf-8")
