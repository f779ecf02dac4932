"""Every setting of training, with its unit, its range and its default; the three presets; where the bundled things are.

The defaults of `TrainConfig` are the preset `paper`; `PRESETS` has what the other two change. A flag beats the preset.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from eqdiff.mask_config import DETECTOR, DETECTOR_HELP, SEGMENTER, SEGMENTER_HELP
from eqdiff.options import HUGE, UserError, build_parser, check_fields, from_json, main_guard, opt, require, to_json
from eqdiff.prompts import SLOTS, STRANGE, read_prompts, require_slot

__all__ = [
    "ASSETS", "BASE_HELP", "BUNDLED_BASE", "MEMORY", "PRESETS", "TrainConfig", "UserError", "default_preset",
    "find_class_word", "from_json", "is_bundled", "main_guard", "parse", "preset_config", "read_prompts", "resolve",
    "resolve_base", "to_json",
]  # fmt: skip

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED_BASE = ASSETS / "toybox" / "base"
BASE_HELP = "SD 1.x base: folder, hub id or single file (default: $EQDIFF_BASE, else the bundled toybox base)"
MOST_WORD = 100  # characters of a class word
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Teach Stable Diffusion 1.x a subject from a few photos: subject folder -> concept file."""

    # what goes in and out
    pretrained_model_name_or_path: str | None = opt(None, BASE_HELP)
    instance_data_dir: str | None = opt(None, "folder with the subject's photos (default: a bundled subject)")
    class_word: str | None = opt(None, "what the subject is, e.g. 'cat toy' (default: class.txt in the photo folder)")
    mask_dir: str | None = opt(None, "folder with <photo stem>.png masks (default: masks/ in the photo folder)")
    auto_masks: bool = opt(True, "make the masks that are missing; off: without any, whole pictures are the subject")
    detector_model: str = opt(DETECTOR, DETECTOR_HELP)
    segmenter_model: str = opt(SEGMENTER, SEGMENTER_HELP)
    output_dir: str | None = opt(None, "where the results go (default: outputs/<subject>)")
    overwrite: bool = opt(False, "start anew where output_dir holds a concept or an unfinished training")
    preset: Literal["paper", "official", "toybox"] = opt(
        "paper", "source of the other defaults; on the bundled base toybox"
    )
    resolution: int = opt(512, "side of the square pictures [pixels, a multiple of 8]", 32, 4096)
    seed: int = opt(0, "seed of every draw", 0, HUGE)
    # frequency split (Eq. 3-5)
    filter_shape: Literal["circle", "square"] = opt("circle", "shape of the pass region in the shifted spectrum")
    low_cutoff: float = opt(16.0, "the low-pass keeps up to here [cycles per image = FFT bins]", 1)
    high_cutoff: float = opt(16.0, "the high-pass keeps above here [cycles per image = FFT bins]", 1)
    filter_colour: bool = opt(True, "filter the three channels; off: their mean, repeated")
    filter_rectify: bool = opt(False, "absolute value of the inverse transform (the release) instead of its real part")
    filter_prior: bool = opt(False, "draw bands for the class images too")
    band_probs: tuple[float, float, float] = opt(
        (0.1, 0.1, 0.8), "probability of each band; they sum to 1", 0, 1, metavar=("LOW", "HIGH", "FULL")
    )
    # tokens and captions (Sec. 4.1)
    fdte: bool = opt(True, "two token rows, one per band, summed for the full image; off: a single row")
    token_init: Literal["class", "rare"] = opt("class", "start the rows from the class word or from rare_token")
    rare_token: str = opt("ktn", "word whose embedding token_init rare takes")
    token_init_scale: float = opt(1.0, "size of the sum of the rows at the start [source embeddings]", 0, 100)
    slot_by: Literal["token_id", "whitespace"] = opt("token_id", "how the subject's place in a caption is found")
    size_prefixes: bool = opt(False, "put the release's false size prefixes before captions")
    instance_prompt: str = opt("photo of a {}", "caption of the subject's photos; {} is the subject")
    class_prompt: str = opt("photo of a {}", "caption of the class images; {} is the class word")
    reference_prompt: str = opt("photo of a {}", "text for the reference UNet; {} is the class word")
    # mask-guided diffusion (Eq. 6-7)
    masking: Literal["noise", "loss", "none"] = opt("noise", "noise and loss inside the mask, the loss alone, or none")
    mask_dilation: float = opt(0.0, "growth of the mask in Eq. 6-7 [fraction of the image side]", 0, 1)
    binary_masks: bool = opt(True, "cut masks at half grey; off: grey mask pixels stay grey")
    # reference attention (Eq. 8-10)
    rra: bool = opt(True, "attend to features of a reference photo")
    rra_layers: tuple[str, ...] = opt(("mid_block", "up_blocks"), "where [module name prefixes]")
    gate_init: Literal["zero", "identity"] = opt("zero", "start of the gate and its fusing layer")
    gate_clamp: Literal["inward", "closed"] = opt("inward", "gradient of the gate's clamp at and beyond its bounds")
    reference_noise: Literal["independent", "target"] = opt("independent", "noise of the reference: own or target's")
    reference_time_gap: int = opt(0, "the reference is this much earlier than the target [of 1000 timesteps]", 0, 999)
    reference_at_sampling: Literal["noised", "clean"] = opt("noised", "reference latent at sampling")
    reference_augmentation: Literal["crop_rotate_flip", "scale", "none"] = opt(
        "crop_rotate_flip", "random change to a reference photo and its mask (scale: as the release)"
    )
    reference_on_prior: bool = opt(True, "class images get a reference too: an augmented copy of themselves")
    num_references: int = opt(1, "photos that a picture attends to, side by side; the paper has one", 1, 16)
    reference_pool: int = opt(200, "augmented references encoded before training [images]", 1, 100_000)
    ra_loss_weight: float = opt(0.1, "weight of the reference-attention loss", 0)
    ra_loss_form: Literal["all", "masked"] = opt("all", "Eq. 10 over all queries, or over the subject's alone")
    ra_loss_layers: tuple[str, ...] = opt(("up_blocks.1",), "where that loss looks [module name prefixes]")
    cross_loss_weight: float = opt(0.0, "weight of the release's cross-attention loss", 0)
    cross_loss_layers: tuple[str, ...] = opt(("down_blocks.2", "up_blocks.1"), "where it looks [module name prefixes]")
    # prior preservation
    with_prior_preservation: bool = opt(True, "train on class images beside the subject")
    prior_loss_weight: float = opt(1.0, "weight of the class images' loss", 0)
    class_data_dir: str | None = opt(None, "folder of class images (default: made once by the base itself, and kept)")
    num_class_images: int = opt(200, "class images wanted", 1, 1_000_000)
    class_inference_steps: int = opt(50, "denoising steps of a class image", 1, 1000)
    class_guidance_scale: float = opt(7.5, "guidance of the class images", 0, 100)
    # optimization
    unet_weights: Literal["kv", "all", "none"] = opt(
        "kv", "UNet weights that are trained: cross-attention's K/V, all (DreamBooth), none (Textual Inversion)"
    )
    max_train_steps: int = opt(600, "optimizer steps", 1)
    train_batch_size: int = opt(2, "photos a step and process; as many class images come on top", 1)
    gradient_accumulation_steps: int = opt(1, "batches an optimizer step", 1)
    learning_rate: float = opt(4e-5, "AdamW step, not rescaled (the paper says 1e-5, its release scales that by 4)", 0)
    token_learning_rate: float = opt(4e-5, "AdamW step of the token rows", 0)
    adam_weight_decay: float = opt(0.01, "decoupled weight decay, token rows apart", 0)
    token_weight_decay: float = opt(0.0, "decoupled weight decay of the token rows", 0)
    max_grad_norm: float = opt(1.0, "clip the gradient to this norm", 0)
    memory: Literal["8", "12", "24"] | None = opt(None, "settings for a GPU of so much memory [GB], see MEMORY")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = opt(None, "default: bf16 on GPUs that have it, else no")
    gradient_checkpointing: bool = opt(False, "recompute activations: less memory, slower")
    latent_cache: bool = opt(True, "let the VAE encode everything once, and keep it on disk; off: at every step")
    compile: bool = opt(False, "compile the transformer blocks: minutes at the start, for long trainings on a GPU")
    # what is kept, and sampling
    checkpointing_steps: int = opt(0, "steps between checkpoints; 0: none, but for one when it is stopped", 0)
    checkpoints_total_limit: int = opt(10, "checkpoints kept, the newest; 0: all", 0)
    resume_from_checkpoint: str | None = opt(None, "a checkpoint folder, or 'latest'")
    validation_steps: int = opt(200, "steps between preview grids; 0: none", 0)
    validation_prompts: str | None = opt(None, "prompt file of the previews (default: a bundled one)")
    num_validation_images: int = opt(1, "previews per prompt", 1)
    report_to: Literal["none", "tensorboard", "wandb"] = opt("tensorboard", "curves beside log.jsonl")
    log_steps: int = opt(10, "steps between lines of log.jsonl", 1)
    concept_dtype: Literal["fp32", "bf16", "fp16"] = opt("fp32", "precision of the concept file")
    embed_reference: bool = opt(True, "photos' latents in the concept file; off: sampling needs the photos")
    guidance_scale: float = opt(12.5, "guidance, here and as the concept's default", 0, 100)
    num_inference_steps: int = opt(50, "denoising steps, here and as the concept's default", 1, 1000)

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.resolution % 8 == 0, f"--resolution {self.resolution}: must be a multiple of 8")
        total = sum(self.band_probs)
        require(math.isclose(total, 1, abs_tol=1e-6), f"--band_probs {self.band_probs}: must sum to 1, not {total:g}")
        require_slot("--instance_prompt", self.instance_prompt)
        word = self.class_word or "unknown"
        one_line = word.strip() and word.splitlines() == [word] and not STRANGE.search(word)
        plain = one_line and len(word) <= MOST_WORD and not any(slot in word for slot in SLOTS)
        require(plain, f"--class_word {word!r}: give the plain noun for the subject, e.g. 'cat toy'")
        require(self.rare_token.strip(), "--rare_token: empty; give a token of the base, e.g. ktn")
        for name in ("class_prompt", "reference_prompt"):
            prompt = getattr(self, name)
            require("<new1>" not in prompt.lower(), f"--{name} {prompt!r}: shows no subject; {{}} is the class word")
        named = not self.rra or (self.rra_layers and all(self.rra_layers))
        require(named, f"--rra_layers {self.rra_layers}: name layers, or set --no-rra")
        for name in ("ra_loss", "cross_loss"):
            layers = getattr(self, f"{name}_layers")
            named = getattr(self, f"{name}_weight") == 0 or (layers and all(layers))
            require(named, f"--{name}_layers {layers}: name layers, or set --{name}_weight 0")


# What each preset changes of the defaults above. The release sums its instance loss over the four latent channels: that
# is 4x our per-channel mean. What it weighs against it is divided by 4 here; AdamW does not see the common factor.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {
        "filter_shape": "square", "filter_colour": False, "filter_rectify": True, "filter_prior": True,
        "low_cutoff": 50.0, "high_cutoff": 5.0,
        "token_init": "rare", "token_init_scale": 2.0, "token_weight_decay": 0.01,
        "slot_by": "whitespace", "size_prefixes": True, "class_prompt": "{}",
        "mask_dilation": 10 / 64, "binary_masks": False,
        "reference_time_gap": 2, "reference_noise": "target", "reference_at_sampling": "clean",
        "reference_augmentation": "scale", "gate_clamp": "closed", "ra_loss_form": "masked",
        "prior_loss_weight": 1.0 / 4, "ra_loss_weight": 0.1 / 4, "cross_loss_weight": 0.1 / 4, "max_grad_norm": 1.0 / 4,
        "guidance_scale": 7.5,
    },
    "toybox": {
        "resolution": 128, "low_cutoff": 8.0, "high_cutoff": 8.0,
        "instance_prompt": "a photo of a {}", "class_prompt": "a photo of a {}", "reference_prompt": "a photo of a {}",
        "num_class_images": 32, "class_inference_steps": 20, "reference_pool": 64,
        "max_train_steps": 300, "learning_rate": 5e-4, "token_learning_rate": 5e-4,
        "masking": "loss",  # the paper's masked noising leaves speckle on a base this weak: README
        "ra_loss_layers": ("up_blocks.2", "up_blocks.3"),
        "guidance_scale": 3.0, "num_inference_steps": 30,
    },
}  # fmt: skip

# What `--memory` changes, for SD 1.x at 512 pixels in half precision; two photos an optimizer step in each.
MEMORY: dict[str, dict[str, Any]] = {
    "8": {"train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    "12": {"train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": False},
    "24": {"train_batch_size": 2, "gradient_accumulation_steps": 1, "gradient_checkpointing": False},
}


def preset_config(preset: str, **given: Any) -> TrainConfig:
    """The settings of a preset, with those in `given` instead of its own. UserError: unknown preset, bad value."""
    require(preset in PRESETS, f"--preset {preset!r}: must be one of {', '.join(PRESETS)}")
    memory = MEMORY.get(given.get("memory") or "", {})
    return TrainConfig(**{**PRESETS[preset], **memory, **given, "preset": preset})


def parse(cls: type[Config], argv: Sequence[str] | None = None) -> Config:
    """A command line (default: this program's) -> settings. UserError: unknown flag, bad value."""
    if cls is not TrainConfig:
        return cls(**vars(build_parser(cls).parse_args(argv)))
    given = vars(build_parser(cls, PRESETS).parse_args(argv))
    preset = given.pop("preset", None) or default_preset(resolve_base(given.get("pretrained_model_name_or_path")))
    return preset_config(preset, **given)


def resolve_base(name: str | None) -> str:
    """The base: the one named, else $EQDIFF_BASE, else the bundled toybox base. Whether it exists is not checked."""
    return name or os.environ.get("EQDIFF_BASE") or str(BUNDLED_BASE)


def default_preset(base: str) -> str:
    """`toybox` for the bundled toybox base, however its folder is spelled; else `paper`."""
    return "toybox" if Path(base).resolve() == BUNDLED_BASE.resolve() else "paper"


def is_bundled(folder: str | Path) -> bool:
    """Whether these photos (or this base) are ours: under assets/."""
    return Path(folder).resolve().is_relative_to(ASSETS.resolve())


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in base, photo folder, class word and output folder where they were not given.

    UserError: no such photo folder; no class word given and no class.txt in that folder.
    """
    named, bundled = config.instance_data_dir, sorted(path for path in (ASSETS / "subjects").glob("*") if path.is_dir())
    require(named or bundled, f"no photos named, and no bundled subject under {ASSETS}: give --instance_data_dir")
    if config.validation_prompts:
        read_prompts(config.validation_prompts)  # they are drawn hours later
    folder = Path(named) if named else bundled[0]
    require(folder.is_dir(), f"--instance_data_dir {folder}: there is no such folder; name the one with the photos")
    return dataclasses.replace(
        config,
        pretrained_model_name_or_path=resolve_base(config.pretrained_model_name_or_path),
        instance_data_dir=str(folder),
        class_word=find_class_word(folder, config.class_word),
        output_dir=config.output_dir or str(Path("outputs") / folder.resolve().name),
    )


def find_class_word(folder: Path, given: str | None) -> str:
    """What the photos of a folder show: as given, else as class.txt in it says. UserError: neither."""
    note = folder / "class.txt"
    text = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else ""
    word = given or " ".join(text.split())
    require(word, f"what is in the photos of {folder} is not known: give --class_word, e.g. --class_word 'cat toy'")
    return word
