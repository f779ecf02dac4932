"""Runs -> gallery.html: one page that opens from disk, asks nobody for anything, and runs no text.

What the page shows is data in it, which its own script turns into text nodes: a class word or a
prompt with HTML is shown as it is written. A content policy allows no other script.
"""

import base64
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from eqdiff.data.folder import load_photo, photo_mask
from eqdiff.data.sheets import overlay
from eqdiff.errors import UserError, require
from eqdiff.files import replacing
from eqdiff.gallery.command import drawing_command, training_command
from eqdiff.gallery.found import Row, Run, find_run, has_mask, newest_run
from eqdiff.gallery.pictures import Beside, Embedded, Pictures
from eqdiff.ours import WRITTEN_BY
from eqdiff.settings.gallery import GalleryConfig
from eqdiff.settings.options import names_of
from eqdiff.settings.train import PLACE, TrainConfig
from eqdiff.tokens import plain
from eqdiff.wording import clean

HERE = Path(__file__).parent
PAGE = "gallery.html"
BESIDE = "gallery_pictures"
MARK = '<meta name="generator" content="EqDiff">'
LOG = logging.getLogger(__name__)
MOST = 500  # pictures of a page that is written without being asked for
HEAD = 500  # bytes of a page in which its mark lies
PHOTO_SIDE = 384  # pixels, longest, of a photo
PICTURE_SIDE = 1024  # of a drawn picture
GRID_SIDE = 1600  # of a preview grid
SHOWN_APART = {"file", "prompt", "concept_file", *WRITTEN_BY}  # of a row
ARTICLE = re.compile(r"^(an?|the)\s+|\s+(an?|the)$", re.IGNORECASE)
OF = re.compile(r"\s+of$", re.IGNORECASE)


def style_and_place(prompt: str) -> tuple[str, str]:
    """The words before the subject, without "a" and "of a", and those after it.

    "an oil painting of a {} on the beach" -> "oil painting", "on the beach".
    """
    before, _, after = plain(prompt, "{}").partition("{}")
    style = ARTICLE.sub("", ARTICLE.sub("", before.strip()))
    style = "" if style.lower() in ("a", "an", "the") else OF.sub("", style)
    return style.strip(), after.replace("{}", " ").strip(" ,.")


def is_ours(path: Path) -> bool:
    """Whether a page is one of ours."""
    return path.is_file() and MARK.encode() in path.read_bytes()[:HEAD]


def require_ours(path: Path, *, overwrite: bool) -> None:
    """Raises UserError if something that is not ours lies where the page goes."""
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file with --output")
    if path.exists() and not (overwrite or is_ours(path)):
        raise UserError(
            f"{path}: not written by EqDiff, so it stays; move it, name another page with "
            "--output, or add --overwrite"
        )


def make_page(config: GalleryConfig) -> Path:
    """Writes the page that the settings ask for, and returns its path.

    Raises UserError as `find_run` and `write_gallery` do, and if there is no run.
    """
    runs = [find_run(Path(name)) for name in config.runs or (newest_run(),)]
    above = os.path.commonpath([os.path.abspath(run.folder) for run in runs])
    usual = runs[0].folder if len(runs) == 1 else Path(os.path.relpath(above))
    page = Path(config.output) if config.output else usual / PAGE
    write_gallery(runs, page, embed=config.embed, overwrite=config.overwrite)
    return page


def write_gallery(
    runs: Sequence[Run], path: Path, *, embed: bool = True, overwrite: bool = False
) -> None:
    """Writes the page of these runs.

    embed: pictures in the page; False: in gallery_pictures/ beside it. overwrite: also over files
    of others. Raises UserError if one of those is in the way, or if a picture cannot be read.
    """
    require_ours(path, overwrite=overwrite)
    pictures = Embedded() if embed else Beside(path.parent / BESIDE, overwrite=overwrite)
    text = page_of(runs, pictures)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    if isinstance(pictures, Beside):
        pictures.done()


def write_beside(folder: Path) -> Path | None:
    """The page of the pictures just drawn into `folder`, or None where a warning says why not.

    The drawing has succeeded by now, so nothing here ends it with an error.
    """
    page = folder / PAGE
    try:
        run = find_run(folder)
        count = len(run.rows)
        require(count <= MOST, f"{page}: not written, {count} pictures; bash scripts/gallery.sh is")
        write_gallery([run], page)
    except UserError as error:
        LOG.warning("no page of the pictures: %s", error)
        return None
    return page


def page_of(runs: Sequence[Run], pictures: Pictures) -> str:
    """The page's text. Raises UserError if a picture cannot be read."""
    parts = {name: (HERE / f"gallery.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    data = {"runs": [_run(number, run, pictures) for number, run in enumerate(runs)]}
    # "<" would end the element that holds the data
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return Template(parts["html"]).substitute(
        mark=MARK,
        title=clean(" | ".join(run.name for run in runs), "html"),
        script=parts["js"],
        style=parts["css"],
        script_hash=_hash(parts["js"]),
        style_hash=_hash(parts["css"]),
        data=text,
    )


def _hash(text: str) -> str:
    """What the content policy calls this script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _run(number: int, run: Run, pictures: Pictures) -> dict[str, Any]:
    """A run as the page's script takes it."""
    hidden = run.settings.get("embed_reference") is False
    return {
        "name": clean(run.name),
        "word": clean(run.word),
        "note": "The photos stay out: this concept was trained with --no-embed_reference."
        if hidden
        else "",
        "commands": [c for c in (training_command(run), drawing_command(run)) if c],
        "photos": [_photo(f"{number}-photo-{i:03d}", run, path, pictures)
                   for i, path in enumerate(run.photos)],
        "previews": [_preview(number, step, path, pictures) for step, path in run.previews.items()],
        "curve": [[row["step"], row["loss"]] for row in run.log],
        "settings": _settings(run.settings),
        "marks": [[clean(name), _figure(value)] for name, value in run.overall.items()],
        "samples": [_sample(f"{number}-{i:05d}", run, row, pictures)
                    for i, row in enumerate(run.rows)],
    }  # fmt: skip


def _photo(name: str, run: Run, path: Path, pictures: Pictures) -> dict[str, Any]:
    """A photo without and with its mask."""
    photo = load_photo(path, enough=PHOTO_SIDE)
    mask = None
    if has_mask(run, path) or photo.alpha is not None:
        mask = photo_mask(photo, [folder for folder in run.masks if folder.is_dir()])
    small = _small(photo.image, PHOTO_SIDE)
    entry = {"name": clean(path.name), "src": pictures.put(small, name), **_size(small)}
    if mask is not None:
        masked = overlay(small, mask.resize(small.size))
        entry["masked"] = pictures.put(masked, f"{name}-mask")
    return entry


def _preview(number: int, step: int, path: Path, pictures: Pictures) -> dict[str, Any]:
    grid = _small(load_photo(path).image, GRID_SIDE)
    return {"step": step, "src": pictures.put(grid, f"{number}-step-{step:06d}"), **_size(grid)}


def _sample(name: str, run: Run, row: Row, pictures: Pictures) -> dict[str, Any]:
    """A drawn picture with what its row and its scores say."""
    picture = _small(load_photo(run.samples / row["file"]).image, PICTURE_SIDE)
    style, place = style_and_place(row["prompt"])
    scores = run.scores.get(row["file"], {})
    facts = {key: value for key, value in row.items() if key not in SHOWN_APART}
    return {
        "src": pictures.put(picture, name),
        **_size(picture),
        "prompt": clean(row["prompt"]),
        "text": clean(plain(row["prompt"], run.word)),
        "style": clean(style) or "plain",
        "place": clean(place) or "no place named",
        "number": row["number"] if isinstance(row.get("number"), int) else 0,
        "marks": [[clean(metric), f"{value:.3f}"] for metric, value in scores.items()],
        "facts": [[clean(key), _shown(value)] for key, value in facts.items()],
        "command": drawing_command(run, row),
    }


def _settings(settings: Row) -> list[list[str]]:
    """Names and values, without places on somebody's machine."""
    apart = {*names_of(TrainConfig, PLACE), *WRITTEN_BY}
    return [[clean(k), _shown(value)] for k, value in settings.items() if k not in apart]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "-"
    return clean(" ".join(map(str, value)) if isinstance(value, list) else value)


def _figure(value: Any) -> str:
    """A mean with its interval, as metrics.json has it."""
    try:
        mean = f"{float(value['mean']):.3f}"
        low, high = value.get("low"), value.get("high")
        return mean if low is None else f"{mean} ({float(low):.3f} to {float(high):.3f})"
    except (TypeError, KeyError, ValueError, AttributeError):
        return "-"


def _small(image: Image.Image, side: int) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy


def _size(image: Image.Image) -> dict[str, int]:
    return {"w": image.width, "h": image.height}
