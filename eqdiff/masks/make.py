"""Makes the masks that a subject's photos lack, and a sheet to check them by.

GroundingDINO and SAM 2 make them if they can be had, else the network that comes with EqDiff.

A photo's own alpha channel and the user's mask files are never changed. They help to find the
others. Axes: H, W size of a photo, h, w size of its copy.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from eqdiff.data.folder import load_photo, photo_mask, stray_masks, subject_photos
from eqdiff.data.outliers import out_of_line
from eqdiff.data.sheets import framed, image_grid, overlay
from eqdiff.errors import UserError
from eqdiff.files import replacing
from eqdiff.masks.salient import subject_masks
from eqdiff.masks.segment import Detector, Segmenter, Unavailable, load_segmenter
from eqdiff.ours import SOFTWARE, is_before_marks, is_picture, misplaced, save_picture
from eqdiff.settings.masks import COVERAGE, MaskConfig

COPY_SIDE = 512  # longest side of the copies on the sheet, which the network sees [pixels]
MODEL_SIDE = 1024  # short side of the photo that the models see, if it has that [pixels]
# The sheet is in a folder of its own: beside the masks it could pass for the mask of a photo.
SHEET = Path("overlay", "overlay.jpg")
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SmallPhoto:
    """A photo in small.

    path: the file. size: width and height of the photo. copy: the photo with at most COPY_SIDE
    pixels a side. mask: "L" of the size of the copy; None if there is none yet.
    """

    path: Path
    size: tuple[int, int]
    copy: Image.Image
    mask: Image.Image | None


@dataclass(frozen=True)
class Cell:
    """A cell of the sheet: a photo, a mask of the size of its copy, and the text below them."""

    photo: SmallPhoto
    mask: Image.Image
    caption: str


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_masks(
    folder: Path,
    config: MaskConfig,
    into: Path,
    *,
    word: str,
    given: Sequence[Path],
    device: str = "cpu",
    quiet: bool = False,
) -> list[Path]:
    """Makes masks for the photos of `folder` that have none, and a sheet to check them by.

    A mask is written as into/<stem>.png: 0 or 255, as large as the photo is displayed. The sheet is
    written as into/overlay/overlay.jpg. Returns the files of the masks.

    given: folders of masks that are there already, the user's first. config: of it the maker, its
    models and `overwrite` are read. quiet: what load_subject warns of too, no warning says: files
    that are no photo's mask, and masks that are out of line with the others.

    Raises UserError if a mask covers under 1 % or over 95 % of its photo (the others are written),
    if models are required and cannot be had, if something that is not ours lies where a file is
    written, and as subject_photos, load_photo, load_mask and load_segmenter do.
    """
    paths = subject_photos(folder)
    strays = stray_masks((given or [into])[0], paths)
    if strays and not quiet:
        LOG.warning(strays)

    photos = [_small(path, given) for path in paths]
    targets = [into / f"{photo.path.stem}.png" for photo in photos if photo.mask is None]
    if not targets:
        return []

    _require_ours(into, targets, overwrite=config.overwrite)
    written = []
    refused = []
    cells = []
    for photo, mask in _made(photos, config, word, folder, device):
        share = float(mask.mean())
        caption = f"{photo.path.name}  {100 * share:.1f} %"
        if COVERAGE[0] <= share <= COVERAGE[1]:
            written.append(_write(mask, into / f"{photo.path.stem}.png"))
        else:
            refused.append(f"{photo.path.name} ({100 * share:.1f} %)")
            caption += " refused"

        small_mask = Image.fromarray(mask).resize(photo.copy.size)
        cells.append(Cell(photo, small_mask.convert("L"), caption))

    cells += [Cell(p, p.mask, f"{p.path.name}  given") for p in photos if p.mask is not None]
    _write_sheet(cells, into / SHEET, quiet)
    if refused:
        by_hand = (given or [into])[0] / "NAME.png"
        raise UserError(
            f"{folder}: no mask could be made for {', '.join(refused)} of the photo; paint the "
            f"subject white in {by_hand}, or name the subject otherwise than '{word}', or remove "
            "the photo"
        )
    return written


def _require_ours(into: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
    """Raises UserError if somebody's file lies where a mask or the sheet is written.

    overwrite: such files are replaced. A folder in place of a file is refused nevertheless.
    """
    sheet = into / SHEET
    blocked = misplaced(into, [sheet.parent.name], [path.name for path in targets])
    blocked = blocked or misplaced(sheet.parent, [], [sheet.name])
    if blocked:
        raise UserError(f"{blocked}: in the way, masks are written there; move it away")

    if overwrite or is_before_marks(into.parent):
        return

    for path in (*targets, sheet):
        if os.path.lexists(path) and not is_picture(path):
            remedy = "move it, or add --overwrite"
            raise UserError(f"{path}: not written by EqDiff, so it stays; {remedy}")


def _small(path: Path, given: Sequence[Path]) -> SmallPhoto:
    """The photo in a file in small, with its mask from the folders `given` or its alpha channel."""
    photo = load_photo(path, enough=COPY_SIDE)
    mask = photo_mask(photo, given)
    copy = photo.image.copy()
    copy.thumbnail((COPY_SIDE, COPY_SIDE))
    small_mask = mask and mask.resize(copy.size, Image.Resampling.NEAREST)
    return SmallPhoto(path, photo.size, copy, small_mask)


def _made(
    photos: Sequence[SmallPhoto], config: MaskConfig, word: str, folder: Path, device: str
) -> Iterator[tuple[SmallPhoto, np.ndarray]]:
    """The photos without a mask, each with its new mask: bool (H, W).

    A warning says which maker was at work.
    """
    missing = [photo for photo in photos if photo.mask is None]
    models, reason = _models(config, device)
    if isinstance(models, Segmenter):
        names = ", ".join(
            Path(name).name for name in (config.detector_model, config.segmenter_model)
        )
        message = "%s: %d masks made for '%s' by %s; check them"
        LOG.warning(message, folder, len(missing), word, names)
        for photo in tqdm(missing, desc="masks", unit="photo", leave=False):
            large = load_photo(photo.path, enough=MODEL_SIDE).image
            yield photo, _enlarged(models(large, word), photo.size)
        return

    LOG.warning(
        "%s: %d masks made by U2-Net-p and what the photos have in common (%s); check them. "
        "Better: let GroundingDINO and SAM 2 be downloaded once or name their folders "
        "(--detector_model, --segmenter_model), or paint your own into %s",
        folder,
        len(missing),
        reason,
        folder / "masks",
    )
    known = [None if photo.mask is None else np.asarray(photo.mask) >= 128 for photo in photos]
    boxes = [
        _box(models, photo, word) if models is not None and photo.mask is None else None
        for photo in photos
    ]
    masks = subject_masks([np.asarray(photo.copy) for photo in photos], known, boxes)
    for photo, mask in zip(photos, masks, strict=True):
        if photo.mask is None:
            yield photo, _enlarged(mask, photo.size)


def _box(detector: Detector, photo: SmallPhoto, word: str) -> list[float] | None:
    """Where in the copy of a photo the class word is, in pixels; None if it is not found."""
    large = load_photo(photo.path, enough=MODEL_SIDE).image
    box = detector.box(large, word)
    return box and [edge * photo.copy.width / large.width for edge in box]


def _enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask (h, w) at the photo's size (width, height): bool (H, W)."""
    levels = mask.astype(np.uint8) * 255
    return cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR) > 127


def _models(config: MaskConfig, device: str) -> tuple[Detector | None, str]:
    """Both models, or the detector alone, or neither; and why not both.

    Raises UserError if they are required and cannot be had.
    """
    if config.mask_maker == "colours":
        return None, "as asked"

    try:
        return load_segmenter(config.detector_model, config.segmenter_model, device), ""
    except Unavailable as error:
        if config.mask_maker == "models":
            raise UserError(f"{error}; name folders, or take --mask_maker colours") from None
        return error.detector, str(error)


def _write(mask: np.ndarray, path: Path) -> Path:
    """Writes a bool mask (H, W) as a picture, and returns its path."""
    with replacing(path) as beside:
        save_picture(Image.fromarray(mask.astype(np.uint8) * 255), beside)
    return path


def _write_sheet(cells: Sequence[Cell], path: Path, quiet: bool) -> None:
    """Writes the photos under their masks as a JPEG with our mark.

    Photos that are out of line with the others have a red frame, and a warning names them.
    """
    pictures = [overlay(cell.photo.copy, cell.mask) for cell in cells]
    reasons = out_of_line([cell.photo.copy for cell in cells], [cell.mask for cell in cells])
    for i, reason in enumerate(reasons):
        if reason is not None:
            pictures[i] = framed(pictures[i])
            if not quiet:
                LOG.warning("%s: %s; look at it in %s", cells[i].photo.path, reason, path)

    captions = [cell.caption for cell in cells]
    with replacing(path) as beside:
        sheet = image_grid(pictures, min(4, len(cells)), captions)
        sheet.save(beside, format="JPEG", comment=SOFTWARE)
