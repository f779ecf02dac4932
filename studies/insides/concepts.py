"""A concept, with the settings, base and photos of its training; a map as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eqdiff.base.load import Base, load_base
from eqdiff.data.sheets import image_grid, to_pil
from eqdiff.data.subject import Subject, load_subject
from eqdiff.errors import require
from eqdiff.evaluation.metrics import caption, load_clip, load_dino, pair_scores, text_scores
from eqdiff.settings.options import from_json
from eqdiff.settings.places import ASSETS, resolve_base
from eqdiff.settings.train import TrainConfig, found


def settings_of(concept: Path) -> TrainConfig:
    """The settings of a concept's training. Raises UserError if they do not lie beside it."""
    file = concept.parent / "config.json"
    require(file.is_file(), f"{file}: not there; name a concept file in its training's folder")
    return found(from_json(TrainConfig, file.read_text()), file.parent)


def base_of(config: TrainConfig, name: str | None = None) -> Base:
    """The base of that name, else the one of the training. Raises UserError if it cannot be had."""
    return load_base(resolve_base(name or config.pretrained_model_name_or_path))


def subject_of(config: TrainConfig) -> Subject:
    """The photos of the training. Raises UserError if they are gone or cannot be read."""
    return load_subject(
        config.instance_data_dir, class_word=config.class_word, resolution=config.resolution
    )


def scorer(
    prompts: Sequence[str], subject: Subject
) -> Callable[[Sequence[Image.Image]], tuple[float, float]]:
    """What gives mean CLIP-T and DINO-I of pictures, one a prompt, by the toybox's own judges."""
    clip = load_clip(str(ASSETS / "toybox" / "clip"))
    dino = load_dino(str(ASSETS / "toybox" / "dino"))
    photos = dino.images([to_pil(image) for image in subject.images])
    texts = clip.texts([caption(prompt, subject.class_word) for prompt in prompts])

    def scores(images: Sequence[Image.Image]) -> tuple[float, float]:
        clip_t = text_scores(clip.images(images), texts).mean()
        return float(clip_t), float(pair_scores(dino.images(images), photos).mean())

    return scores


def picture_of(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """A map (1,h,w) in [0,1] as a grey picture of this (height, width): 1 is white."""
    enlarged = F.interpolate(values[None].float(), size=size, mode="nearest")[0]
    return to_pil(enlarged.expand(3, -1, -1) * 2 - 1)


def save_grid(
    path: Path, pictures: Sequence[Image.Image], columns: int, captions: Sequence[str]
) -> None:
    """Writes pictures in rows, captions below them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(pictures, columns=columns, captions=captions).save(path)
