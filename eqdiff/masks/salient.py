"""Where the subject of a photo is, by U2-Net-p (Qin et al. 2020), and what the photos agree on.

U2-Net-p is a small network for salient objects. It comes with EqDiff, in assets/masks, and OpenCV
runs it. It marks the most striking thing in a photo, which may be more than the subject (a glass
beside it), less (the head alone), or something else. So its answer is compared with the other
photos of the subject (agreement.py), and it looks again where they say that the subject is.

Photos are RGB (H, W, 3) in 8 bits; h, w are the size of a working copy. A map is float32 in 0..1,
1 where something stands out. A box is left, top, right, bottom in pixels.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from eqdiff.errors import UserError
from eqdiff.masks.agreement import agreed_maps, best_masks
from eqdiff.settings.places import ASSETS

NETWORK = ASSETS / "masks" / "u2netp.onnx"
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
INPUT_SIDE = 320  # of what the network sees [pixels]
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as is the spread
SPREAD = (0.229, 0.224, 0.225)
MARGIN = 0.15  # around a box that the network looks at, of its longer side
COPY_SIDE = 256  # longest side of the copies that are compared [pixels]
THRESHOLDS = (0.5, 0.1, 0.03)  # where a map is cut; the lower ones for a subject that it half sees
FREE_PIXELS = 10  # GrabCut needs about so many of each kind

Array = np.ndarray
Box = Sequence[float]


class Salience:
    """The network, loaded."""

    def __init__(self, path: Path = NETWORK) -> None:
        """Raises UserError if the file is not there, or is not the one that was tested."""
        remedy = "get it again with EqDiff, or take --mask_maker models"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: not readable ({error.strerror}); {remedy}") from None
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise UserError(f"{path}: not the network for masks, or damaged; {remedy}")

        self.network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        # the first of seven: the others are coarser stages of it
        self.output = self.network.getUnconnectedOutLayersNames()[0]

    def __call__(self, photo: Array, box: Box | None = None) -> Array:
        """The map (H, W) of a photo; with a box: of what is in it and near it, 0 elsewhere."""
        height, width = photo.shape[:2]
        left, top, right, bottom = _with_margin(box or (0, 0, width, height), width, height)
        seen = photo[top:bottom, left:right]

        pixels = cv2.resize(seen, (INPUT_SIDE, INPUT_SIDE), interpolation=cv2.INTER_AREA)
        levels = pixels / np.float32(max(1, pixels.max()))
        levels = (levels - np.float32(MEAN)) / np.float32(SPREAD)
        self.network.setInput(np.ascontiguousarray(levels.transpose(2, 0, 1)[None]))
        answer = self.network.forward(self.output)[0, 0]

        answer = (answer - answer.min()) / max(np.ptp(answer), 1e-6)
        whole = np.zeros((height, width), np.float32)
        whole[top:bottom, left:right] = cv2.resize(answer, seen.shape[1::-1])
        return whole


def subject_masks(
    photos: Sequence[Array],
    given: Sequence[Array | None] | None = None,
    boxes: Sequence[Box | None] | None = None,
) -> list[Array]:
    """Photos of one subject, each of its own size -> masks, bool (H, W). Deterministic.

    given: masks that are known, bool (H, W); they teach what the subject looks like.
    boxes: where the subject is, as far as that is known; there the network looks.

    Raises UserError as Salience does.
    """
    salience = Salience()
    given = given or [None] * len(photos)
    boxes = boxes or [None] * len(photos)
    known = [mask is not None for mask in given]

    maps = []
    rows = list(zip(photos, given, boxes, strict=True))
    for photo, mask, box in tqdm(rows, desc="masks", unit="photo", leave=False):
        maps.append(salience(photo, box) if mask is None else mask.astype(np.float32))

    small_photos = [_small(photo) for photo in photos]
    small_maps = [_small(share) for share in maps]
    agreed, aligned = agreed_maps(small_photos, small_maps, known)

    choices = []
    rows = list(zip(photos, small_photos, small_maps, agreed, strict=True))
    for i, (photo, small, seen, shared) in enumerate(
        tqdm(rows, desc="again", unit="photo", leave=False)
    ):
        if known[i]:
            choices.append([seen > 0.5])
            continue

        first = outline(small, seen, shared) if aligned[i] else tidy(seen > 0.5, seen)
        again = _second_look(salience, photo, tidy(shared > 0.5, shared))
        looks = [seen] if again is None else [seen, again]
        cuts = [tidy(look > level, look) for look in looks for level in THRESHOLDS]
        choices.append([first, *(cut for cut in cuts if cut.any())])

    masks = best_masks(small_photos, choices, known)
    return [_enlarged(mask, photo) for mask, photo in zip(masks, photos, strict=True)]


def outline(photo: Array, seen: Array, shared: Array) -> Array:
    """The mask of a small photo, bool (h, w), from the network's map and the one agreed on.

    Where both say the same, that holds. Where they differ, GrabCut decides by colours and edges; it
    starts from what was agreed.
    """
    labels = np.where(shared > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[(seen > 0.5) & (shared > 0.5)] = cv2.GC_FGD
    labels[(seen <= 0.5) & (shared <= 0.5)] = cv2.GC_BGD

    inside = (labels & 1).astype(bool)
    undecided = labels >= cv2.GC_PR_BGD
    if undecided.any() and min(inside.sum(), (~inside).sum()) >= FREE_PIXELS:
        background = np.zeros((1, 65))
        foreground = np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(photo, labels, None, background, foreground, 3, cv2.GC_INIT_WITH_MASK)
    return tidy((labels & 1).astype(bool), shared)


def tidy(mask: Array, share: Array) -> Array:
    """A bool mask (h, w) without specks and small holes.

    Parts stay that hold a fifth of what the part with most of the map `share` holds.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(fill_holes(mask).astype(np.uint8), cv2.MORPH_OPEN, disc)
    count, parts = cv2.connectedComponents(opened)
    weight = np.bincount(parts.ravel(), share.ravel(), count)
    weight[0] = 0
    return (weight >= 0.2 * weight.max())[parts] & (parts > 0)


def fill_holes(mask: Array) -> Array:
    """A bool mask (h, w) whose holes under 1 % of its area are filled."""
    background = 1 - np.pad(mask, 1).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    filled = stats[:, cv2.CC_STAT_AREA] < 0.01 * mask.sum()
    filled[parts[0, 0]] = False  # the outside
    return mask | (filled[parts[1:-1, 1:-1]] & ~mask)


def _second_look(salience: Salience, photo: Array, mask: Array) -> Array | None:
    """The small map (h, w) of the network that looks where a small mask is; None for no mask."""
    if not mask.any():
        return None

    scale = max(photo.shape[:2]) / max(mask.shape)
    rows = np.flatnonzero(mask.any(1)) * scale
    columns = np.flatnonzero(mask.any(0)) * scale
    box = (columns[0], rows[0], columns[-1] + scale, rows[-1] + scale)
    return _small(salience(photo, box))


def _with_margin(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """A box with MARGIN around it, within a photo of this size, whole pixels, not empty."""
    left, top, right, bottom = box
    margin = MARGIN * max(right - left, bottom - top)
    left = min(max(0, int(left - margin)), width - 1)
    top = min(max(0, int(top - margin)), height - 1)
    right = max(left + 1, min(width, round(right + margin)))
    bottom = max(top + 1, min(height, round(bottom + margin)))
    return left, top, right, bottom


def _small(picture: Array) -> Array:
    """A photo or map with COPY_SIDE pixels on its longer side."""
    scale = COPY_SIDE / max(picture.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in picture.shape[1::-1])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=way)


def _enlarged(mask: Array, photo: Array) -> Array:
    """A small mask as large as its photo: bool (H, W)."""
    return cv2.resize(mask.astype(np.float32), photo.shape[1::-1]) > 0.5
