"""Measures one folder of drawn pictures: text, identity, and identity to the truth if known.

Axes: N pictures, D width of CLIP's features, E of DINO's.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eqdiff.data.folder import find_photos, load_photo
from eqdiff.errors import UserError
from eqdiff.evaluation.metrics import agreement, caption, pair_scores, scaled, text_scores
from eqdiff.evaluation.report import by_prompt, summarize
from eqdiff.evaluation.samples import Samples
from eqdiff.settings.places import is_bundled

ENOUGH = 1024  # short side of the pictures that a judge is given, which sees 224 or so [pixels]
Rows = list[dict[str, Any]]
# the subject's file and the prompts -> pictures of the very subject, by prompt, where it can
Truths = Callable[[Path, Iterable[str]], dict[str, Any]]


def measure(samples: Samples, clip: Any, dino: Any, batch: int, truths: Truths) -> dict[str, Any]:
    """Everything measured on one folder, ready for JSON.

    batch: pictures that the models see at once.

    Raises UserError if there are no photos, or a picture cannot be read.
    """
    photos = find_photos(samples.photos)
    clip_photos, dino_photos = features_of(photos, clip, dino, batch, "photos")
    title = str(samples.folder)
    clip_drawn, dino_drawn = features_of(samples.files, clip, dino, batch, title)

    captions = {prompt: caption(prompt, samples.class_word) for prompt in samples.prompts}
    texts = dict(zip(captions, clip.texts(list(captions.values())), strict=True))
    cosines = text_scores(clip_drawn, torch.stack([texts[p] for p in samples.prompts]))
    scores = {
        "clip_t_cos": cosines,
        "clip_t_2.5": scaled(cosines),
        "clip_i": pair_scores(clip_drawn, clip_photos),
        "dino_i": pair_scores(dino_drawn, dino_photos),
    }

    rows = _rows(samples, captions, scores)
    add_truth(rows, dino_drawn, samples, dino, truths)

    return {
        "samples": str(samples.folder),
        "concept": samples.rows[0].get("concept"),
        "step": samples.step,
        "class_word": samples.class_word,
        "photos": [path.name for path in photos],
        "overall": summarize(rows),
        "prompts": by_prompt(rows),
        "images": rows,
    }


def features_of(
    files: Sequence[Path], clip: Any, dino: Any, batch: int, title: str
) -> tuple[Tensor, Tensor]:
    """CLIP's and DINO's unit features of picture files: (N, D) and (N, E). Each is read once."""
    of_clip = []
    of_dino = []
    for first in tqdm(range(0, len(files), batch), desc=title, unit="batch", leave=False):
        some = files[first : first + batch]
        images = [load_photo(path, enough=ENOUGH).image for path in some]
        of_clip.append(clip.images(images))
        of_dino.append(dino.images(images))
    return torch.cat(of_clip), torch.cat(of_dino)


def _rows(samples: Samples, captions: dict[str, str], scores: dict[str, Tensor]) -> Rows:
    """A row a picture: its file, prompt and caption, and its scores by name."""
    columns = {name: values.tolist() for name, values in scores.items()}
    rows = []
    for number, sample in enumerate(samples.rows):
        prompt = sample["prompt"]
        row = {"file": sample["file"], "prompt": prompt, "text": captions[prompt]}
        row |= {name: values[number] for name, values in columns.items()}
        rows.append(row)
    return rows


def add_truth(rows: Rows, features: Tensor, samples: Samples, dino: Any, truths: Truths) -> None:
    """Adds two scores to rows of the toybox, where the very subject can be drawn.

    truth_i is identity against drawn pictures of the very subject in the prompt's style and
    context. truth_ceiling is the agreement of those pictures. Other rows stay as they are.

    Raises UserError if the subject's instance.json is broken.
    """
    subject = samples.photos / "instance.json"
    if not (is_bundled(samples.base) and subject.is_file()):
        return
    try:
        drawn = truths(subject, dict.fromkeys(samples.prompts))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{subject}: not a subject of the toybox ({error}); restore or remove it"
        ) from None

    truth = {prompt: dino.images(pictures) for prompt, pictures in drawn.items()}
    for row, feature in zip(rows, features, strict=True):
        if row["prompt"] in truth:
            pictures = truth[row["prompt"]]
            row["truth_i"] = float(pair_scores(feature[None], pictures))
            row["truth_ceiling"] = agreement(pictures)
