"""Where things are: the bundled base and subjects, what was named, what the photo folder says."""

import filecmp
import os
import re
from pathlib import Path

from eqdiff.errors import require


def assets_of(package: Path) -> Path:
    """The folder of bundled files: in an installed package, beside the package in a checkout."""
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent / "assets"


ASSETS = assets_of(Path(__file__).resolve().parent.parent)
BUNDLED_BASE = ASSETS / "toybox" / "base"
LONGEST_NOTE = 1000  # characters of a class.txt; a longer one is no class word
# what people call the folders that they keep models in: no owner on the hub is meant by these
MODEL_FOLDERS = set(
    """
    model models checkpoint checkpoints ckpt ckpts weight weights base bases pretrained
    pretrained_models concept concepts output outputs out results assets data downloads cache
    photos tmp home
    """.split()
)
BASE_HELP = (
    "SD 1.x base: folder, hub id or single file "
    "(default: $EQDIFF_BASE, else the bundled toybox base)"
)


def resolve_base(name: str | None) -> str:
    """The base: the one named, else $EQDIFF_BASE, else the bundled toybox base.

    Whether it exists is not checked.
    """
    return name or os.environ.get("EQDIFF_BASE") or str(BUNDLED_BASE)


def is_hub_id(name: str) -> bool:
    """Whether the hub may be asked for what no file or folder here is named.

    The rule: it reads owner/name, `owner` is no file or folder here and no usual name of a folder
    for models (MODEL_FOLDERS), and `name` does not end as a file of weights does. Anybody may own
    any name on the hub, so a path that is merely missing must not be asked for there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return False
    owner, _, model = name.partition("/")
    is_path = os.path.lexists(owner) or owner.lower() in MODEL_FOLDERS
    return not is_path and not model.endswith((".safetensors", ".json", ".yaml"))


def default_preset(base: str) -> str:
    """`toybox` for the bundled toybox base, however its folder is spelled; else `paper`."""
    return "toybox" if Path(base).resolve() == BUNDLED_BASE.resolve() else "paper"


def is_bundled(folder: str | Path) -> bool:
    """Whether these photos (or this base) are ours: under assets/."""
    return Path(folder).resolve().is_relative_to(ASSETS.resolve())


def is_bundled_subject(folder: str | Path) -> bool:
    """Whether these photos are a bundled subject's: under assets/, or a copy, byte by byte.

    The masks of a copy may differ: the page in the browser lets people paint them.
    """
    if is_bundled(folder):
        return True
    files = [path for path in Path(folder).glob("[!.]*") if path.is_file()]
    subjects = (ASSETS / "subjects").glob("*/")
    return bool(files) and any(
        all(_is_same(path, subject / path.name) for path in files) for subject in subjects
    )


def _is_same(path: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(path, other, shallow=False)


def find_class_word(folder: Path, given: str | None) -> str:
    """What the photos of a folder show: as given, else as class.txt in it says.

    Raises UserError if neither says so.
    """
    word = given or ""
    note = folder / "class.txt"
    if not word and note.is_file():
        with note.open(encoding="utf-8", errors="replace") as file:
            word = " ".join(file.read(LONGEST_NOTE).split())
    remedy = "give --class_word, e.g. --class_word 'cat toy'"
    require(word, f"what is in the photos of {folder} is not known: {remedy}")
    return word


def told_path(value: str, folder: str | Path) -> str:
    """A path as a file in `folder` may tell it: from there, or from the home as `~/...`.

    No absolute path, and so no user's name, is in what may be passed on. What names nothing here,
    such as a hub id, stays as it is. `found_path` is the inverse.
    """
    path = Path(os.path.abspath(os.path.expanduser(value)))
    if not (os.path.isabs(value) or value.startswith("~") or path.exists()):
        return value

    folder = Path(folder).resolve()
    home = Path(os.path.expanduser("~"))
    in_home = home.is_absolute() and path.is_relative_to(home) and home != Path(home.anchor)
    if in_home and not folder.is_relative_to(home):
        return str(Path("~") / path.relative_to(home))
    return os.path.relpath(path, folder)


def found_path(value: str, folder: str | Path) -> str:
    """The path that a file in `folder` tells: see `told_path`.

    Files of older versions tell it from the working directory.
    """
    path = Path(folder).resolve() / os.path.expanduser(value)
    return str(path.resolve()) if path.exists() else value
