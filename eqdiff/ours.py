"""Which files in a folder are ours, told by a mark in them; the one remover, which keeps others.

The marks: images name EqDiff as their software, rows of a manifest say who wrote them, checkpoints
and concepts name their format, the names of curves end in a suffix. A config.json is known by its
keys, a log by those of its first line. Files from before there were marks count as ours by their
names, but only beside a config.json of ours without a mark.

Hidden files (a desktop leaves some everywhere) are neither removed nor in the way.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqdiff.settings.options import WRITTEN_BY

if TYPE_CHECKING:
    from PIL.Image import Image

SOFTWARE = WRITTEN_BY["written_by"]
CURVES = ".eqdiff"  # how the names of tensorboard's files end
HEAD = 2**20  # bytes of a file in which its mark lies
PICTURES = (  # the mark in PNG, in JPEG
    b"tEXtSoftware\0" + SOFTWARE.encode(),
    b"\xff\xfe\0\x08" + SOFTWARE.encode(),
)
FORMATS = {"state.json": b"eqdiff-checkpoint-", "concept.safetensors": b"eqdiff-concept-"}
# state.json is the first to go: a checkpoint without it counts as torn
CHECKPOINT = ("state.json", "concept.safetensors", "optimizer.safetensors")
CONFIG_KEYS = {"class_word", "band_probs", "fdte", "rra", "instance_data_dir"}
LOG_KEYS = {"step", "loss", "diffusion", "lr", "seconds"}
# of rows without a mark
ROW_KEYS = {"file", "prompt", "seed", "reference", "steps", "guidance", "scheduler", "concept"}


def save_picture(image: "Image", path: Path) -> None:
    """Writes a PNG with our mark."""
    from PIL.PngImagePlugin import PngInfo

    metadata = PngInfo()
    metadata.add_text("Software", SOFTWARE)
    image.save(path, format="PNG", pnginfo=metadata)


def is_picture(path: Path) -> bool:
    """Whether an image has our mark; no pixel is read."""
    head = _head(path)
    return any(mark in head for mark in PICTURES)


def is_config(path: Path) -> bool:
    """Whether this is a config.json of ours."""
    return CONFIG_KEYS <= _object(_head(path)).keys()


def is_before_marks(folder: Path) -> bool:
    """Whether an output folder is of a version that wrote no marks, so that names must do."""
    path = folder / "config.json"
    return is_config(path) and not WRITTEN_BY.items() <= _object(_head(path)).items()


def is_log(path: Path) -> bool:
    """Whether this is a log of ours. An empty file counts: nothing is lost with it."""
    head = _head(path)
    return path.is_file() and (not head or LOG_KEYS <= _object(_first_line(head)).keys())


def is_row(row: Any) -> bool:
    """Whether this is a line of a manifest of ours."""
    return isinstance(row, dict) and (WRITTEN_BY.items() <= row.items() or ROW_KEYS <= row.keys())


def is_report(path: Path) -> bool:
    """Whether this is a metrics.json of ours. All of it is read, for it may be long."""
    return path.is_file() and {"overall", "prompts", "images"} <= _object(path.read_bytes()).keys()


def is_manifest(path: Path) -> bool:
    """Whether the first line is a manifest's of ours. An empty file counts."""
    head = _head(path)
    return path.is_file() and (not head or is_row(_object(_first_line(head))))


def is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint folder of ours, whole or torn."""
    return path.is_dir() and any(mark in _head(path / name) for name, mark in FORMATS.items())


def _is_mask(path: Path) -> bool:
    return all(map(is_picture, entries(path))) if path.is_dir() else is_picture(path)


def _is_curve(path: Path) -> bool:
    return path.is_file() and path.name.endswith(CURVES)


# What a training writes. Files: name -> whether it is ours.
FILES: dict[str, Callable[[Path], bool]] = {
    "config.json": is_config,
    "log.jsonl": is_log,
    "masks.png": is_picture,
}
# Folders: name -> the form of the names in it ("/" ends a folder's), whether an entry is ours.
FOLDERS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "checkpoints": (r"step-\d+/", is_checkpoint),
    "preview": (r"step-\d+\.png", is_picture),
    "curves": (r"events\.out\.tfevents\..*", _is_curve),
    "masks": (r".+\.png|overlay/", _is_mask),
}


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, or in the one that a link leads to, without hidden files.

    [] if there is no folder.
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def misplaced(
    folder: Path, folders: Iterable[str] = FOLDERS, files: Iterable[str] = FILES
) -> Path | None:
    """The first thing at a name of ours that is of another kind. Nobody can write there.

    That is a file or a dead link where a folder belongs, or a folder where a file belongs.
    """
    for name in files:
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            return folder / name
    for name in folders:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            return folder / name
    return None


def foreign_file(folder: Path) -> Path | None:
    """The first of a training's files in its output folder that is not ours."""
    if is_before_marks(folder):
        return None
    for name, is_ours in FILES.items():
        path = folder / name
        if not is_ours(path) and os.path.lexists(path):
            return path
    return None


def foreign_entry(folder: Path, names: Iterable[str] = FOLDERS) -> Path | None:
    """The first thing in a training's folders, under its output folder, that is not ours."""
    for name in names:
        for entry in entries(folder / name):
            if not _is_ours(entry, folder, name):
                return entry
    return None


def clear(folder: Path, names: Sequence[str]) -> None:
    """Removes what is ours from these of a training's folders, and a folder that is empty then.

    The newest goes first: what a kill leaves is a training that went less far. A link to a folder
    stays.
    """
    for name in names:
        ours = [entry for entry in entries(folder / name) if _is_ours(entry, folder, name)]
        for entry in reversed(ours):
            remove(entry, CHECKPOINT)

        if ours and not (folder / name).is_symlink():
            with suppress(OSError):  # somebody's files are in it
                (folder / name).rmdir()


def remove(path: Path, parts: Sequence[str] = ()) -> None:
    """The one remover. It removes a file, or a link but not what it leads to.

    Of a folder it removes the files named in `parts`, and the folder if nothing else is in it. Such
    a folder is renamed first: a half-deleted folder must not look like a valid one.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    if not path.name.startswith(".") and {entry.name for entry in path.iterdir()} <= set(parts):
        renamed = path.with_name(f".{path.name}.partial")
        with suppress(OSError):  # one of that name is left from a kill
            os.replace(path, renamed)
            path = renamed

    for name in parts:
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody's files are in it
        path.rmdir()


def _is_ours(entry: Path, folder: Path, name: str) -> bool:
    """By name and mark: a copy of ours under somebody's own name is theirs."""
    form, has_mark = FOLDERS[name]
    named = re.fullmatch(form, f"{entry.name}/" if entry.is_dir() else entry.name)
    return bool(named) and (has_mark(entry) or is_before_marks(folder))


def _head(path: Path) -> bytes:
    """A file's first bytes; b"" if it is not a file."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def _first_line(head: bytes) -> bytes:
    return head.partition(b"\n")[0]


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; {} if the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
