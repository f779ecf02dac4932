"""DreamBench++ as a set of subjects: a picture each, and nine prompts of its own.

Its folder has images/ and captions/, alike within: images/live_subject/animal/00.jpg has its words
in captions/live_subject/animal/00.txt. The first line there is what the picture shows, each other
line a prompt with that word in it: four in the style of photos, three in other styles, two of
fancy. What its folder "style" has are styles, not subjects, and is left out.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eqdiff.errors import UserError, require
from eqdiff.files import replacing

LOG = logging.getLogger(__name__)
IMAGES, CAPTIONS = "images", "captions"
STYLES_APART = "style"  # the folder of what is no subject
STYLIZED = range(4, 7)  # which of the nine prompts ask for a style
PROMPTS = "prompts.json"  # in a folder of ours: (text, kind) pairs
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

Prompts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """A subject: its name, its class word, its one picture, its prompts with {} for it."""

    name: str
    word: str
    file: Path
    prompts: Prompts


def root_of(folder: Path) -> Path | None:
    """The folder with images/ and captions/, this one or its data/; None: it is no DreamBench++."""
    for root in (folder, folder / "data"):
        if (root / IMAGES).is_dir() and (root / CAPTIONS).is_dir():
            return root
    return None


def find_pictures(root: Path) -> list[Picture]:
    """The subjects, by their paths.

    Raises UserError if there are none, or if one has no captions that can be used.
    """
    files = sorted(path for path in (root / IMAGES).rglob("*") if path.suffix.lower() in SUFFIXES)
    inner = {file: file.relative_to(root / IMAGES) for file in files}
    subjects = [file for file in files if STYLES_APART not in inner[file].parts[:-1]]
    require(subjects, f"--subjects {root}: no pictures of subjects in {IMAGES}/")
    return [_picture(file, root / CAPTIONS / inner[file].with_suffix(".txt")) for file in subjects]


def _picture(file: Path, captions: Path) -> Picture:
    """A subject of its picture and its captions."""
    try:
        lines = [line.strip() for line in captions.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{captions}: the words of {file.name} cannot be read ({error})") from None
    word, *texts = [line for line in lines if line] or [""]
    require(word and texts, f"{captions}: give the class word, and below it a prompt a line")

    slotted = [(_with_slot(text, word), number) for number, text in enumerate(texts)]
    prompts = [
        (text, "style" if number in STYLIZED else "plain") for text, number in slotted if text
    ]
    require(prompts, f"{captions}: no prompt has the word {word!r} in it; write it there")
    if len(prompts) < len(texts):
        without = len(texts) - len(prompts)
        LOG.warning("%s: %d prompts without %r are left out", captions, without, word)
    name = re.sub(r"[^\w-]+", "_", f"{file.parent.name}_{file.stem}_{word.lower()}").strip("_")
    return Picture(name, word.lower(), file, tuple(prompts))


def _with_slot(text: str, word: str) -> str | None:
    """A prompt with {} where it has the word first, None if it has not. Braces are no slots."""
    plain = text.replace("{", "(").replace("}", ")")
    slotted, count = re.subn(rf"\b{re.escape(word)}\b", "{}", plain, count=1, flags=re.IGNORECASE)
    return slotted if count else None


def laid_out(pictures: Sequence[Picture], work: Path) -> list[Path]:
    """Writes each subject as DreamBooth's has it into a folder of ours below `work`: these."""
    folders = []
    for picture in pictures:
        folder = work / picture.name
        contents = {
            f"00{picture.file.suffix.lower()}": picture.file.read_bytes(),
            "class.txt": picture.word.encode(),
            PROMPTS: json.dumps(picture.prompts).encode(),
        }
        for name, content in contents.items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != content:
                with replacing(folder / name, shared=True) as beside:
                    beside.write_bytes(content)
        folders.append(folder)
    return folders


def prompts_in(folder: Path) -> Prompts:
    """The prompts of a subject's own that are in a folder of ours; () where it has none."""
    file = folder / PROMPTS
    if not file.is_file():
        return ()
    return tuple((text, kind) for text, kind in json.loads(file.read_text(encoding="utf-8")))
