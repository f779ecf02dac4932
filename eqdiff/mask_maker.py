"""Makes the masks that a subject's photos lack: by models if they can be had, else by colours; writes and shows them.

A photo's own alpha channel and the user's mask files are never touched; they help to find the others.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from eqdiff.config import UserError
from eqdiff.data import image_grid, overlay
from eqdiff.grabcut import subject_masks
from eqdiff.mask_config import COVERAGE, MaskConfig
from eqdiff.photos import Photo, find_mask, load_mask, load_photo, subject_mask, subject_photos
from eqdiff.segment import Segmenter, Unavailable, load_segmenter

SHOWN = 512  # longest side of the copies that are shown, and that colours are compared on [pixels]
SEEN = 1024  # short side of the photo that the models see, at least if it has that [pixels]
SHEET = Path("overlay", "overlay.jpg")  # in a folder of its own: beside the masks it might pass for one
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A photo: its file and size, a copy of at most SHOWN pixels, and its given mask at that size, if any."""

    path: Path
    size: tuple[int, int]
    copy: Image.Image
    given: Image.Image | None


def make_masks(
    folder: Path, config: MaskConfig, into: Path, *, word: str, given: Sequence[Path], device: str = "cpu"
) -> list[Path]:
    """Masks for the photos of `folder` that have none, written as into/<stem>.png: 0 or 255, size of the photo as
    displayed. The overlay sheet lies in into/overlay. Returns what was written.

    given: folders of masks that count as there, the user's first. config: only the maker and its models are read.
    UserError: a mask that covers under 1 % or over 95 % (the others are written); what subject_photos, load_photo,
    load_mask and load_segmenter refuse; with mask_maker "models" also models that cannot be had.
    """
    items = [_item(path, given) for path in subject_photos(folder)]
    if all(item.given is not None for item in items):
        return []
    written, refused, cells = [], [], []
    for item, mask in _found(items, config, word, folder, device):
        share = float(mask.mean())
        caption = f"{item.path.name}  {100 * share:.1f} %"
        if COVERAGE[0] <= share <= COVERAGE[1]:
            written.append(_write(mask, into / f"{item.path.stem}.png"))
        else:
            refused.append(f"{item.path.name} ({100 * share:.1f} %)")
            caption += " refused"
        cells.append((item, Image.fromarray(mask).resize(item.copy.size), caption))
    cells += [(item, item.given, f"{item.path.name}  given") for item in items if item.given is not None]
    _write_sheet(cells, into / SHEET)
    if refused:
        raise UserError(
            f"{folder}: no mask could be made for {', '.join(refused)} of the photo; paint the subject white in "
            f"{(given or [into])[0] / 'NAME.png'}, or name the subject otherwise than '{word}', or remove the photo"
        )
    return written


def _item(path: Path, given: Sequence[Path]) -> Item:
    photo = load_photo(path, enough=SHOWN)
    copy, mask = photo.image.copy(), given_mask(photo, given)
    copy.thumbnail((SHOWN, SHOWN))
    return Item(path, photo.size, copy, mask and mask.resize(copy.size, Image.Resampling.NEAREST))


def given_mask(photo: Photo, folders: Sequence[Path]) -> Image.Image | None:
    """The mask of a photo, "L" at its size: a file of the first folder, else its alpha channel, else of the others."""
    files = [find_mask(folder, photo.path.stem) for folder in folders]
    first = files[0] if files else None
    if first is None and photo.alpha is not None:
        return subject_mask(photo.alpha, photo.path)
    file = next((file for file in files if file is not None), None)
    return file and load_mask(file, photo)


def _found(
    items: Sequence[Item], config: MaskConfig, word: str, folder: Path, device: str
) -> Iterator[tuple[Item, np.ndarray]]:
    """The items without a mask and their masks, bool (H, W) at the photo's size; says which maker was at work."""
    missing = [item for item in items if item.given is None]
    models = _models(config, device)
    if isinstance(models, Segmenter):
        names = ", ".join(Path(name).name for name in (config.detector_model, config.segmenter_model))
        LOG.warning("%s: %d masks made for '%s' by %s; check them", folder, len(missing), word, names)
        for item in missing:
            yield item, _grown(models(load_photo(item.path, enough=SEEN).image, word), item.size)
        return
    LOG.warning(
        "%s: %d masks made by colours and edges, without a model (%s); check them. Better: let GroundingDINO and SAM 2 "
        "be downloaded once or name their folders (--detector_model, --segmenter_model), or paint your own into %s",
        folder, len(missing), models, folder / "masks",
    )  # fmt: skip
    given = [None if item.given is None else np.asarray(item.given) >= 128 for item in items]
    masks = subject_masks([np.asarray(item.copy) for item in items], given)
    for item, mask in zip(items, masks, strict=True):
        if item.given is None:
            yield item, _grown(mask, item.size)


def _grown(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask (h, w) at the photo's size (width, height)."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5


def _models(config: MaskConfig, device: str) -> Segmenter | str:
    """The two models, or why they are not used."""
    if config.mask_maker == "colours":
        return "as asked"
    try:
        return load_segmenter(config.detector_model, config.segmenter_model, device)
    except Unavailable as error:
        if config.mask_maker == "models":
            raise UserError(f"{error}; name folders, or take --mask_maker colours") from None
        return str(error)


def _write(mask: np.ndarray, path: Path) -> Path:
    with _beside(path) as part:
        Image.fromarray(mask.astype(np.uint8) * 255).save(part, format="PNG")
    return path


def _write_sheet(cells: Sequence[tuple[Item, Image.Image, str]], path: Path) -> None:
    pictures = [overlay(item.copy, mask.convert("L")) for item, mask, _ in cells]
    with _beside(path) as part:
        image_grid(pictures, min(4, len(cells)), [caption for *_, caption in cells]).save(part, format="JPEG")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` when it is whole. UserError: it cannot be written."""
    part = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free some space, or see --help") from None
    finally:
        part.unlink(missing_ok=True)
