"""Preview grids: how the subject is drawn at this step of the training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from eqdiff.concept.concept import Concept
from eqdiff.data.folder import load_photo
from eqdiff.data.sheets import image_grid, to_pil
from eqdiff.data.vae import decode
from eqdiff.model import Customized
from eqdiff.ours import save_picture
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.places import ASSETS, default_preset
from eqdiff.settings.prompts import read_prompts, short
from eqdiff.settings.train import TrainConfig
from eqdiff.tokens import plain
from eqdiff.training.likeness import Likeness, Marks

COLUMNS = 4  # at most
TOYBOX_PROMPTS = "toybox_preview.txt"
PROMPTS = "preview.txt"


def preview(
    model: Customized, concept: Concept, config: TrainConfig, path: Path, likeness: Likeness
) -> Marks:
    """Writes a grid of the preview prompts, each with its own seed, drawn with `concept`.

    Each is marked with its likeness to the photos, and the marks are returned. Above the previews
    stand the first photos as the VAE shows them, so that a copy of one is seen at once. With
    embed_reference off they are left out: the model card passes the grid on, and the photos must
    not be.

    Raises NotFinite, and writes nothing, if the pictures are no finite numbers.
    """
    model.vae.to(model.unet.device)
    try:
        grid, marks = _grid(model, concept, config, likeness)
    finally:
        model.vae.to("cpu")

    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(grid, path)
    return marks


def _grid(
    model: Customized, concept: Concept, config: TrainConfig, likeness: Likeness
) -> tuple[Image.Image, Marks]:
    """The drawn pictures with their captions, a row of photos above them; and the marks."""
    prompts = _prompts(config)
    images = _draw(model, concept, config, prompts)

    references = concept.references
    photos = [to_pil(image) for image in decode(model.vae, references.latents)]
    marks = likeness.marks(images, photos, references.masks)
    word = concept.recipe.class_word
    texts = [plain(prompt, word, short(word)) for prompt in prompts]
    captions = [f"{text}\n{mark}" for text, mark in zip(texts, marks.captions, strict=True)]

    names = concept.references.names[:COLUMNS] if config.embed_reference else ()
    columns = min(COLUMNS, max(len(names), len(images)))
    if names:
        photos = photos[: len(names)]
        blank = Image.new("RGB", photos[0].size, "white")
        gap = columns - len(names)
        images = [*photos, *[blank] * gap, *images]
        captions = [*names, *[""] * gap, *captions]

    return image_grid(images, columns=columns, captions=captions), marks


def _prompts(config: TrainConfig) -> list[str]:
    """The preview prompts, each as often as it is drawn."""
    base = config.pretrained_model_name_or_path or ""
    toybox = "toybox" in (config.preset, default_preset(base))
    bundled = TOYBOX_PROMPTS if toybox else PROMPTS
    file = config.validation_prompts or ASSETS / "prompts" / bundled
    return [prompt for prompt in read_prompts(file) for _ in range(config.num_validation_images)]


def _draw(
    model: Customized, concept: Concept, config: TrainConfig, prompts: Sequence[str]
) -> list[Image.Image]:
    """One image a prompt. The UNet is in evaluation mode meanwhile."""
    pipe = EqDiffPipeline.of(model)
    pipe.attach(model, concept)

    per_prompt = config.num_validation_images
    seeds = [
        seed_of(config.seed, prompt, place % per_prompt) for place, prompt in enumerate(prompts)
    ]
    model.unet.eval()
    try:
        return pipe(prompts, seeds=seeds).images
    finally:
        model.unet.train(config.gradient_checkpointing)


def show_picture(accelerator: Accelerator, name: str, path: Path, step: int) -> None:
    """Gives a picture file to every tracker that takes pictures."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            batch = np.asarray(load_photo(path).image)[None]
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: batch}, step=step, **layout)
