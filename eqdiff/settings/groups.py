"""The settings of training that one part of it needs, a dataclass for each part.

`TrainConfig` in `train.py` inherits them all, and adds what is needed by the program as a whole.
Each default is that of the preset `paper`.
"""

import dataclasses
from typing import Literal

from eqdiff.settings.options import Role, check_fields, opt

PLACE = Role.PLACE
FREE = Role.FREE
CARD = Role.CARD
FIRST = Role.FIRST
LATER = Role.LATER
MethodName = Literal[
    "eqdiff", "custom_diffusion", "dreambooth", "textual_inversion", "infusion", "ico"
]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a concept must know so that it can be drawn: it rides in the concept file."""

    class_word: str | None = opt(
        None,
        "what the subject is, a noun or all that you see, e.g. 'yellow mug with purple dots' "
        "(default: class.txt in the photo folder)",
        role=FIRST,
    )
    method: MethodName = opt(
        "eqdiff", "what is trained: see docs/methods.md", role=CARD | FIRST | LATER
    )
    resolution: int = opt(
        512, "side of the square pictures [pixels, a multiple of 8]", 32, 4096, role=CARD
    )
    fdte: bool = opt(
        True,
        "two token rows, one per band, summed for the full image; off: a single row",
        role=CARD,
    )
    slot_by: Literal["token_id", "whitespace"] = opt(
        "token_id", "how the subject's place in a caption is found"
    )
    rare_token: str = opt(
        "ktn", "what token_init rare takes: this entry of the vocabulary, else this text"
    )
    rra: bool = opt(True, "attend to features of a reference photo", role=CARD)
    rra_layers: tuple[str, ...] = opt(
        ("mid_block", "up_blocks"), "where [module name prefixes]", role=CARD
    )
    unet_weights: Literal["kv", "all", "none"] = opt(
        "kv",
        "UNet weights that are trained: cross-attention's K/V, all (DreamBooth), "
        "none (Textual Inversion)",
        role=CARD,
    )
    gate_init: Literal["zero", "identity"] = opt("zero", "start of the gate and its fusing layer")
    gate_clamp: Literal["inward", "closed"] = opt(
        "inward", "gradient of the gate's clamp at and beyond its bounds"
    )
    binary_masks: bool = opt(
        True, "cut masks at half grey; off: grey mask pixels stay grey", role=LATER
    )
    reference_prompt: str = opt(
        "photo of a {}", "text for the reference UNet; {} is the class word"
    )
    reference_at_sampling: Literal["noised", "clean"] = opt(
        "noised", "reference latent at sampling"
    )
    num_references: int = opt(
        1, "photos that a picture attends to, side by side; the paper has one", 1, 16, role=LATER
    )
    task_tokens: int = opt(
        2, "ICO: tokens in the subject's place, before the class word", 1, 16, role=LATER
    )
    infusion_streams: Literal["single", "dual"] = opt(
        "dual",
        "Infusion: the subject's own attention maps (the release), or the base's, at twice the "
        "rows (the paper)",
        role=LATER,
    )
    infusion_keys: bool = opt(
        False, "Infusion: a residual of the keys too, as in the release", role=LATER
    )
    guidance_scale: float = opt(
        12.5, "guidance, here and as the concept's default", 0, 100, role=FREE | CARD
    )
    num_inference_steps: int = opt(
        50, "denoising steps, here and as the concept's default", 1, 1000, role=FREE | CARD
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def token_rows(self) -> int:
        """How many token rows are learned: one for each band, or a single one."""
        return 2 if self.fdte else 1


@dataclasses.dataclass(frozen=True)
class Draws(Recipe):
    """What a training step draws: photo, band, timestep, noise, reference (Eq. 3-9)."""

    filter_shape: Literal["circle", "square"] = opt(
        "circle", "shape of the pass region in the shifted spectrum"
    )
    low_cutoff: float = opt(16.0, "the low-pass keeps up to here [cycles per image = FFT bins]", 1)
    high_cutoff: float = opt(
        16.0, "the high-pass keeps above here [cycles per image = FFT bins]", 1
    )
    filter_colour: bool = opt(True, "filter the three channels; off: their mean, repeated")
    filter_rectify: bool = opt(
        False, "absolute value of the inverse transform (the release) instead of its real part"
    )
    filter_prior: bool = opt(False, "draw bands for the class images too")
    band_probs: tuple[float, float, float] = opt(
        (0.1, 0.1, 0.8),
        "probability of each band; they sum to 1",
        0,
        1,
        metavar=("LOW", "HIGH", "FULL"),
    )
    size_prefixes: bool = opt(False, "put the release's false size prefixes before captions")
    masking: Literal["noise", "loss", "none"] = opt(
        "noise", "noise and loss inside the mask, the loss alone, or none", role=CARD
    )
    high_noise_share: float = opt(
        0.0, "share of the draws of t from the noisiest quarter; 0: uniform, the paper", 0, 1
    )
    mask_dilation: float = opt(
        0.0, "growth of the mask in Eq. 6-7 [fraction of the image side]", 0, 1
    )
    mask_dilation_by_t: bool = opt(
        False, "ours: grow the mask with the noise, from 0 at no noise to mask_dilation at the end"
    )
    masked_noise_below: float = opt(
        1.0,
        "ours: with --masking noise, noise everywhere from here on [share of the noise schedule]; "
        "1: never",
        0,
        1,
    )
    full_noise_share: float = opt(
        0.0, "ours: with --masking noise, share of the photos that get noise everywhere", 0, 1
    )
    background_loss_weight: float = opt(
        0.0,
        "ours: weight of the loss outside the mask, where noise is; 0: the masked loss; 1 with "
        "--masking loss: that of none",
        0,
        1,
    )
    prior_kind: Literal["images", "prediction"] = opt(
        "images",
        "what holds the class: class images, or (ours) the frozen UNet's prediction for noised "
        "photos under the class caption, so that no class image is made; it needs --rra. Flags of "
        "class images bring images back where a preset has predictions",
    )
    reference_noise: Literal["independent", "target"] = opt(
        "independent", "noise of the reference: own or target's"
    )
    reference_time_gap: int = opt(
        0, "the reference is this much earlier than the target [of 1000 timesteps]", 0, 999
    )
    reference_augmentation: Literal["crop_rotate_flip", "scale", "none"] = opt(
        "crop_rotate_flip",
        "random change to a reference photo and its mask (scale: as the release)",
    )
    reference_on_prior: bool = opt(
        True, "class images get a reference too: an augmented copy of themselves"
    )
    reference_pool: int = opt(
        200, "augmented references encoded before training [images]", 1, 100_000
    )
    train_batch_size: int = opt(
        2, "photos a step and process; as many class images come on top", 1, role=CARD
    )


@dataclasses.dataclass(frozen=True)
class Losses(Draws):
    """What a training step descends, given what it draws (Eq. 7 and 10)."""

    instance_prompt: str = opt(
        "photo of a {}", "caption of the subject's photos; {} is the subject"
    )
    class_prompt: str = opt("photo of a {}", "caption of the class images; {} is the class word")
    prior_loss_weight: float = opt(1.0, "weight of the class images' loss", 0)
    ra_loss_weight: float = opt(0.1, "weight of the reference-attention loss", 0)
    ra_loss_form: Literal["all", "masked"] = opt(
        "all", "Eq. 10 over all queries, or over the subject's alone"
    )
    ra_loss_layers: tuple[str, ...] = opt(
        ("up_blocks.1",), "where that loss looks [module name prefixes]"
    )
    context_positions: Literal["true", "release"] = opt(
        "true", "ICO: position embeddings of the caption: true, or as in the release"
    )
    cross_loss_weight: float = opt(0.0, "weight of the release's cross-attention loss", 0)
    cross_loss_layers: tuple[str, ...] = opt(
        ("down_blocks.2", "up_blocks.1"), "where it looks [module name prefixes]"
    )


@dataclasses.dataclass(frozen=True)
class Prior:
    """The class images that keep the base's idea of the class."""

    with_prior_preservation: bool = opt(True, "train on class images beside the subject")
    class_data_dir: str | None = opt(
        None, "folder of class images (default: made once by the base itself, and kept)", role=PLACE
    )
    class_prompts: str | None = opt(
        None,
        "ours: prompt file; class images are drawn and captioned by its lines in turn, such as in "
        "several styles (default: class_prompt for all)",
        role=PLACE,
    )
    num_class_images: int = opt(200, "class images wanted", 1, 1_000_000)
    class_inference_steps: int = opt(50, "denoising steps of a class image", 1, 1000)
    class_scheduler: Literal["ddim", "dpm++", "unipc"] = opt(
        "ddim", "sampler of the class images; the others need fewer class_inference_steps"
    )
    class_guidance_scale: float = opt(7.5, "guidance of the class images", 0, 100)


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How the weights move."""

    max_train_steps: int = opt(600, "optimizer steps", 1, role=FREE | CARD | FIRST)
    gradient_accumulation_steps: int = opt(1, "batches an optimizer step", 1)
    learning_rate: float = opt(
        4e-5,
        "AdamW step, not rescaled (the paper says 1e-5, its release scales that by 4)",
        0,
        role=CARD,
    )
    token_learning_rate: float = opt(4e-5, "AdamW step of the token rows", 0, role=CARD)
    rra_rate: float = opt(1.0, "AdamW step of the RRA layers [learning_rate]", 0, 1000, role=CARD)
    context_rate: float = opt(
        10.0, "ICO: AdamW step of the photos' contexts [learning_rate]", 0, 1000
    )
    adam_weight_decay: float = opt(0.01, "decoupled weight decay, token rows apart", 0)
    token_weight_decay: float = opt(0.0, "decoupled weight decay of the token rows", 0)
    max_grad_norm: float = opt(1.0, "clip the gradient to this norm", 0)
