"""All settings of `train_eqdiff.py`, with units, ranges and the defaults of the preset `paper`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from eqdiff.errors import require
from eqdiff.settings.groups import (
    CARD,
    FIRST,
    FREE,
    LATER,
    PLACE,
    Losses,
    Optimization,
    Prior,
    Recipe,
)
from eqdiff.settings.masks import DETECTOR, DETECTOR_HELP, SEGMENTER, SEGMENTER_HELP
from eqdiff.settings.options import HUGE, names_of, opt
from eqdiff.settings.places import BASE_HELP, found_path, told_path
from eqdiff.settings.prompts import SLOTS, STRANGE, require_no_subject, require_slot

SAVE_EVERY = 100  # steps between checkpoints, unless the settings say otherwise
MOST_WORD = 100  # characters of a class word


@dataclasses.dataclass(frozen=True)
class TrainConfig(Losses, Prior, Optimization):
    """Teach Stable Diffusion 1.x a subject from a few photos: subject folder -> concept file."""

    # what goes in and out
    pretrained_model_name_or_path: str | None = opt(None, BASE_HELP, role=PLACE | FIRST)
    instance_data_dir: str | None = opt(
        None, "folder with the subject's photos (default: a bundled subject)", role=PLACE | FIRST
    )
    mask_dir: str | None = opt(
        None, "folder with <photo stem>.png masks (default: masks/ in the photo folder)", role=PLACE
    )
    auto_masks: bool = opt(
        True,
        "make the masks that are missing; off: without any, whole pictures are the subject",
        role=FREE,
    )
    detector_model: str = opt(DETECTOR, DETECTOR_HELP, role=PLACE)
    segmenter_model: str = opt(SEGMENTER, SEGMENTER_HELP, role=PLACE)
    output_dir: str | None = opt(
        None, "where the results go (default: outputs/<subject>)", role=PLACE | FIRST
    )
    overwrite: bool = opt(
        False,
        "start anew where output_dir holds a training, or files of others at our names",
        role=FREE | FIRST,
    )
    preset: Literal["paper", "official", "toybox", "plus"] = opt(
        "paper",
        "source of the other defaults; on the bundled base toybox; plus is what we recommend",
        role=FREE | CARD | FIRST,
    )
    seed: int = opt(0, "seed of every draw", 0, HUGE)

    # the start of the token rows (Sec. 4.1)
    token_init: Literal["class", "rare", "output"] = opt(
        "class",
        "start the rows from the class word, from rare_token, or from the text encoder's output "
        "for the class word (Cross Initialization)",
    )
    token_init_scale: float = opt(
        1.0, "size of the sum of the rows at the start [source embeddings]", 0, 100
    )

    # the machine
    memory: Literal["8", "12", "24"] | None = opt(
        None,
        "for a GPU of so much memory [GB]: sets batch, accumulation and checkpointing",
        role=FREE | FIRST,
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = opt(
        None, "default: bf16 on GPUs that have it, else no"
    )
    gradient_checkpointing: bool = opt(
        False, "recompute activations: less memory, slower", role=FREE
    )
    latent_cache: bool = opt(
        True, "let the VAE encode everything once, and keep it on disk; off: at every step"
    )
    compile: bool = opt(
        False,
        "compile the transformer blocks: minutes at the start, for long trainings on a GPU",
        role=FREE,
    )

    # what is kept
    checkpointing_steps: int = opt(
        SAVE_EVERY,
        "steps between checkpoints; 0: none, but for one when it is stopped",
        0,
        role=FREE | FIRST,
    )
    checkpoints_total_limit: int = opt(2, "checkpoints kept, the newest; 0: all", 0, role=FREE)
    resume_from_checkpoint: str | None = opt(
        None, "a checkpoint folder, or 'latest'", role=PLACE | FIRST
    )
    validation_steps: int = opt(200, "steps between preview grids; 0: none", 0, role=FREE)
    validation_prompts: str | None = opt(
        None, "prompt file of the previews (default: a bundled one)", role=PLACE
    )
    dino_model: str | None = opt(
        None,
        "ViT by DINO that marks previews with their likeness to the photos, folder or hub id "
        "(default: on the toybox base its own, else colours are compared)",
        role=PLACE,
    )
    num_validation_images: int = opt(1, "previews per prompt", 1, role=FREE)
    report_to: Literal["none", "tensorboard", "wandb"] = opt(
        "tensorboard", "curves beside log.jsonl", role=FREE
    )
    log_steps: int = opt(10, "steps between lines of log.jsonl", 1, role=FREE)
    concept_dtype: Literal["fp32", "bf16", "fp16"] = opt(
        "fp32", "precision of the concept file", role=FREE
    )
    embed_reference: bool = opt(
        True, "photos' latents in the concept file; off: sampling needs the photos", role=FREE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.resolution
        require(size % 8 == 0, f"--resolution {size}: must be a multiple of 8")

        total = sum(self.band_probs)
        is_one = math.isclose(total, 1, abs_tol=1e-6)
        require(is_one, f"--band_probs {self.band_probs}: must sum to 1, not {total:g}")

        self._check_words()
        self._check_layers()
        self._check_masks()
        with_prior = self.with_prior_preservation or self.prior_kind == "images"
        require(with_prior, "--prior_kind prediction: not with --no-with_prior_preservation")
        self._check_class_prompts()

    def _check_words(self) -> None:
        """Raises UserError if a prompt, the class word or the rare token cannot serve."""
        require_slot("--instance_prompt", self.instance_prompt)

        word = self.class_word or "unknown"
        one_line = word.strip() and word.splitlines() == [word] and not STRANGE.search(word)
        plain = one_line and len(word) <= MOST_WORD and not any(slot in word for slot in SLOTS)
        hint = "say what the subject is, e.g. 'cat toy'"
        require(plain, f"--class_word {word!r}: {hint}")
        require(self.rare_token.strip(), "--rare_token: empty; give a token of the base, e.g. ktn")

        for name in ("class_prompt", "reference_prompt"):
            require_no_subject(f"--{name}", getattr(self, name))

    def _check_class_prompts(self) -> None:
        """Raises UserError if class images have no use for prompts of their own."""
        if self.class_prompts is None:
            return
        flag = f"--class_prompts {self.class_prompts}"
        require(self.needs_class_images, f"{flag}: no class images are made here; leave it out")
        hint = "not with --class_data_dir, whose pictures have --class_prompt"
        require(self.class_data_dir is None, f"{flag}: {hint}")

    def _check_layers(self) -> None:
        """Raises UserError if layers are needed and none is named, or a rate has no layers."""
        named = not self.rra or (self.rra_layers and all(self.rra_layers))
        require(named, f"--rra_layers {self.rra_layers}: name layers, or set --no-rra")
        moves = self.rra or self.rra_rate == 1
        require(moves, f"--rra_rate {self.rra_rate:g}: no RRA layer learns; leave it out")

        for name in ("ra_loss", "cross_loss"):
            layers = getattr(self, f"{name}_layers")
            named = getattr(self, f"{name}_weight") == 0 or (layers and all(layers))
            require(named, f"--{name}_layers {layers}: name layers, or set --{name}_weight 0")

    def _check_masks(self) -> None:
        """Raises UserError if a setting of masks is given where it does nothing."""
        partly = self.masked_noise_below < 1 or self.full_noise_share > 0
        flags = "--masked_noise_below and --full_noise_share"
        require(self.masking == "noise" or not partly, f"{flags}: add --masking noise")

        background = self.masking == "loss" or partly
        remedy = "nothing outside the mask gets noise alone; add --masking loss"
        flag = f"--background_loss_weight {self.background_loss_weight:g}"
        require(background or self.background_loss_weight == 0, f"{flag}: {remedy}")

        grows = self.masking != "none" and self.mask_dilation > 0
        remedy = "no mask grows; add --mask_dilation, and --masking noise or loss"
        require(grows or not self.mask_dilation_by_t, f"--mask_dilation_by_t: {remedy}")

    @property
    def needs_class_images(self) -> bool:
        """Whether class images are trained on, and so made where they are missing."""
        return self.with_prior_preservation and self.prior_kind == "images"

    @property
    def recipe(self) -> Recipe:
        """The settings that a concept file carries."""
        names = [field.name for field in dataclasses.fields(Recipe)]
        return Recipe(**{name: getattr(self, name) for name in names})


def recipe_in(settings: Mapping[str, Any]) -> Recipe:
    """The recipe in a concept's settings.

    Files of older versions lack the fields of role LATER; those get their defaults.
    Raises UserError if another field is missing, or if a value is of the wrong kind.
    """
    fields = dataclasses.fields(Recipe)
    needed = [field.name for field in fields if LATER not in field.metadata["role"]]
    lacking = [name for name in needed if settings.get(name) is None]
    require(not lacking, f"no {lacking[:1]} in its settings")

    return Recipe(
        **{field.name: settings[field.name] for field in fields if field.name in settings}
    )


def told(config: TrainConfig, folder: str | Path) -> TrainConfig:
    """The settings as config.json in `folder` holds them: without absolute paths."""
    return _with_places(config, lambda place: told_path(place, folder))


def found(config: TrainConfig, folder: str | Path) -> TrainConfig:
    """The settings that config.json in `folder` holds, with its paths as they are here."""
    return _with_places(config, lambda place: found_path(place, folder))


def _with_places(config: TrainConfig, change: Callable[[str], str]) -> TrainConfig:
    """The settings with every place changed that they name."""
    places = {name: getattr(config, name) for name in names_of(TrainConfig, PLACE)}
    places = {name: change(place) for name, place in places.items() if place}
    return dataclasses.replace(config, **places)


def portable(config: TrainConfig) -> dict[str, Any]:
    """The settings without places on the machine of whoever trained."""
    places = names_of(TrainConfig, PLACE)
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in places}
