"""What is measured of a cell's pictures: the paper's three metrics, those beside them, the truth.

Every metric is of one picture; the tables average. docs/metrics.md says which to believe.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eqdiff.data.folder import find_photos, load_photo, photo_mask
from eqdiff.evaluation import patches
from eqdiff.evaluation.measure import ENOUGH
from eqdiff.evaluation.metrics import (
    Clip,
    Dino,
    caption,
    load_judges,
    pair_scores,
    text_scores,
)
from eqdiff.settings.places import ASSETS
from studies.reproduce.tables import COLOURS, TRUTH
from toybox.dataset import to_tensor
from toybox.instances import Instance, instance
from toybox.judge import UNKNOWN, VALUES, labels_of
from toybox.judges import Judges
from toybox.truth import FIRST_SEED, Poses, drawings, read_prompt
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

if TYPE_CHECKING:
    from studies.reproduce.cell import Cell

BATCH = 16  # pictures that a judge sees at once
PLUGINS = "eqdiff.metrics"  # the group of entry points of other metrics
PARTS = tuple(name for name in VALUES if name not in ("context", "style"))

Scores = dict[str, Tensor]  # metric -> a value a picture, float64 (N,)


class Photos(NamedTuple):
    """What the judges see in a subject's photos: class tokens (M, D), patches (M, L, D), masks."""

    clip: Tensor
    dino: Tensor
    clip_patches: Tensor
    dino_patches: Tensor
    clip_masks: Tensor
    dino_masks: Tensor


class Eyes:
    """CLIP and DINO, loaded once, and what they see."""

    def __init__(self, clip: Clip, dino: Dino) -> None:
        self.clip = clip
        self.dino = dino

    def photos(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Photos:
        """What they see in photos with "L" masks of the same sizes."""
        of_clip = _batched(self.clip.patches, images)
        of_dino = _batched(self.dino.patches, images)
        return Photos(
            _batched(self.clip.images, images),
            _batched(self.dino.images, images),
            of_clip,
            of_dino,
            patches.masked_patches(self.clip.transform, masks, of_clip.shape[1]),
            patches.masked_patches(self.dino.transform, masks, of_dino.shape[1]),
        )

    def scores(
        self, images: Sequence[Image.Image], prompts: Sequence[str], word: str, photos: Photos
    ) -> Scores:
        """The metrics of pictures, each with its prompt, against a subject's photos.

        All are cosines in [-1, 1]; the paper's CLIP-T is 2.5 times clip_t.
        """
        of_clip = _batched(self.clip.images, images)
        drawn = _batched(self.dino.patches, images)
        drawn_clip = _batched(self.clip.patches, images)
        regions = patches.subject_regions(drawn, photos.dino_patches, photos.dino_masks)
        rest = patches.without_subject(self.dino.transform, images, regions)

        texts = self._texts([caption(prompt, word) for prompt in prompts])
        struck = self._texts([patches.background_text(prompt) for prompt in prompts])
        return {
            "clip_t": text_scores(of_clip, texts),
            "clip_t_background": text_scores(_batched(self.clip.images, rest), struck),
            "clip_i": pair_scores(of_clip, photos.clip),
            "dino_i": pair_scores(_batched(self.dino.images, images), photos.dino),
            "max_cosine": patches.part_scores(drawn, photos.dino_patches, photos.dino_masks),
            "max_cosine_clip": patches.part_scores(
                drawn_clip, photos.clip_patches, photos.clip_masks
            ),
        }

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features of texts (N, D), each different one read once."""
        different = list(dict.fromkeys(texts))
        features = self.clip.texts(different)
        return features[[different.index(text) for text in texts]]


@cache
def eyes_of(clip: str, dino: str) -> Eyes:
    """The judges of two folders or hub ids. Raises UserError if one cannot be loaded."""
    return Eyes(*load_judges(clip, dino))


def toybox_eyes() -> Eyes:
    """The toybox's own CLIP and DINO."""
    return eyes_of(str(ASSETS / "toybox" / "clip"), str(ASSETS / "toybox" / "dino"))


def drawn_photos(drawn: Sequence[Any], eyes: Eyes) -> Photos:
    """What the judges see in drawn photos (`toybox.world.draw`)."""
    images = [Image.fromarray(photo.image) for photo in drawn]
    return eyes.photos(images, [Image.fromarray(photo.mask) for photo in drawn])


@cache
def judges() -> Judges:
    """The toybox's own, read once."""
    return Judges.load(ASSETS / "toybox")


def photos_of(folder: Path, eyes: Eyes) -> Photos:
    """What the judges see in the photos of a prepared folder."""
    loaded = [load_photo(path, enough=ENOUGH) for path in find_photos(folder)]
    whole = [Image.new("L", photo.image.size, 255) for photo in loaded]
    masks = [
        photo_mask(photo, [folder / "masks"]) or other
        for photo, other in zip(loaded, whole, strict=True)
    ]
    return eyes.photos([photo.image for photo in loaded], masks)


def measured(
    cell: "Cell", drawn: Sequence[dict[str, Any]], images_folder: Path
) -> list[dict[str, Any]]:
    """A row a picture of a cell: file, prompt, kind, seed, and its metrics.

    drawn: file, prompt and seed of each.

    Raises UserError if a judge cannot be loaded or a picture cannot be read.
    """
    eyes = eyes_of(cell.clip, cell.dino)
    images = [load_photo(images_folder / fact["file"]).image for fact in drawn]
    prompts = [fact["prompt"] for fact in drawn]
    folder = Path(cell.photos)

    scores = eyes.scores(images, prompts, cell.class_word, photos_of(folder, eyes))
    if entry_points(group=PLUGINS):
        photos = [load_photo(path, enough=ENOUGH).image for path in find_photos(folder)]
        scores |= plugged(images, prompts, photos)
    subject = instance_in(folder)
    if subject is not None and all(read_prompt(prompt) for prompt in prompts):
        scores |= truth_scores(images, prompts, subject)
        scores[COLOURS] = colour_scores(images, prompts, subject)

    kinds = dict(cell.prompts)
    rows = []
    for number, fact in enumerate(drawn):
        row: dict[str, Any] = {"file": fact["file"], "prompt": fact["prompt"]}
        row |= {"kind": kinds[fact["prompt"]], "seed": fact["seed"]}
        values = {name: float(values[number]) for name, values in scores.items()}
        rows.append(row | {name: value for name, value in values.items() if isfinite(value)})
    return rows


def plugged(
    images: Sequence[Image.Image], prompts: Sequence[str], photos: Sequence[Image.Image]
) -> Scores:
    """Metrics of other packages that are installed: LPIPS, DreamSim, VQAScore, whatever there is.

    An entry point of the group eqdiff.metrics names a function (pictures, prompts, photos) -> a
    number a picture.
    """
    scores = {}
    for entry in entry_points(group=PLUGINS):
        values = [float(value) for value in entry.load()(list(images), list(prompts), list(photos))]
        scores[entry.name] = torch.tensor(values, dtype=torch.float64)
    return scores


def instance_in(folder: Path) -> Instance | None:
    """Who the subject of a folder is in the toybox; None: a real one."""
    about = folder / "instance.json"
    if not about.is_file():
        return None
    facts = json.loads(about.read_text(encoding="utf-8"))
    return instance(facts["table"], facts["class"], facts["index"])


def truth_scores(
    images: Sequence[Image.Image], prompts: Sequence[str], subject: Instance
) -> Scores:
    """identity, context and style of pictures of the toybox, each in 0..1.

    identity is the share of the subject's drawn attributes that the judge names right: no network
    of a metric has a part in it.
    """
    size = judges().dino.config.image_size
    squares = [image.convert("RGB").resize((size, size)) for image in images]
    named = judges().name(torch.cat([to_tensor(np.array(square)[None]) for square in squares]))

    columns: dict[str, list[float]] = {name: [] for name in TRUTH}
    for number, prompt in enumerate(prompts):
        context, style = read_prompt(prompt) or ("", "")
        labels = dict(zip(VALUES, labels_of(subject, context, style), strict=True))
        known = [name for name in PARTS if labels[name] != UNKNOWN]
        right = [int(named[name][number]) == labels[name] for name in known]
        columns["identity"].append(sum(right) / len(right))
        columns["context"].append(int(named["context"][number]) == CONTEXT_NAMES.index(context))
        columns["style"].append(int(named["style"][number]) == STYLE_NAMES.index(style))
    return {name: torch.tensor(values).double() for name, values in columns.items()}


def colour_scores(
    images: Sequence[Image.Image], prompts: Sequence[str], subject: Instance
) -> Tensor:
    """`toybox.truth.Poses.colour_distance` of pictures to the drawn truth of their prompts, (N,).

    nan where the style is not photo: other styles change colours.
    """
    distances = []
    for image, prompt in zip(images, prompts, strict=True):
        context, style = read_prompt(prompt) or ("", "")
        if style != "photo":
            distances.append(nan)
            continue
        drawn, masks = drawings(subject, context, style, FIRST_SEED)
        square = np.array(image.convert("RGB").resize(drawn.shape[1:3]))
        poses = Poses(to_tensor(drawn), torch.from_numpy(masks))
        distances.append(poses.colour_distance(to_tensor(square[None])[0]))
    return torch.tensor(distances).double()


def _batched(see: Any, images: Sequence[Image.Image]) -> Tensor:
    """What a judge sees in pictures, a batch at a time."""
    firsts = range(0, len(images), BATCH)
    return torch.cat([see(list(images[first : first + BATCH])) for first in firsts])
