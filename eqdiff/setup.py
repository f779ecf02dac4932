"""What a training starts from: the data as latents, the model, the optimizer; and the previews of where it stands."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image

from eqdiff.base import PRECISIONS, Base
from eqdiff.concept import Concept, References
from eqdiff.config import ASSETS, TrainConfig, read_prompts
from eqdiff.data import image_grid, load_subject, mask_folder, overlay_sheet, to_pil
from eqdiff.encoding import cache_root, cached_encoder, decode, picture_key, vae_encoder, vae_mark
from eqdiff.latents import Latents, latent_masks, prepare
from eqdiff.live import prepare_live
from eqdiff.mask_config import MaskConfig
from eqdiff.mask_maker import make_masks
from eqdiff.masking import coverage
from eqdiff.model import EqDiff, start_rows
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.prior import class_images

COLUMNS = 4  # of a preview grid

# settings that say where things lie on somebody's machine: not for a file that is passed on
PATHS = (
    "pretrained_model_name_or_path", "instance_data_dir", "mask_dir", "output_dir", "class_data_dir",
    "validation_prompts", "resume_from_checkpoint", "detector_model", "segmenter_model",
)  # fmt: skip


def portable(config: TrainConfig) -> dict[str, Any]:
    """The settings without those that say where things lie on somebody's machine."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in PATHS}


class Data(NamedTuple):
    """What a training learns from. overlay: the photos under their masks; keys: what tells these pictures, as this VAE
    encodes them, from others, by "photos" and "class_images": what the latents' cache goes by."""

    latents: Latents
    references: References
    overlay: Image.Image
    keys: dict[str, str]


def load_data(
    config: TrainConfig, base: Base, accelerator: Accelerator, lap: Callable[[str], None] = lambda _: None
) -> Data:
    """Photos and class images as a source of latents, and the sampling References. The base's VAE is then done with.
    lap: told the name of each part of the work when it is done."""
    made = Path(config.output_dir) / "masks"
    if config.auto_masks:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                _make_missing_masks(config, made, accelerator.device)
    subject = load_subject(
        config.instance_data_dir,
        class_word=config.class_word,
        resolution=config.resolution,
        mask_dir=config.mask_dir,
        binary_masks=config.binary_masks,
        made_masks=made if config.auto_masks else None,
    )
    images = None
    if config.with_prior_preservation:
        with accelerator.main_process_first(), accelerator.autocast():
            images = class_images(base, config, accelerator.device, quiet=not accelerator.is_main_process)
    lap("photos and class images")
    generator = torch.Generator().manual_seed(config.seed)
    mark = vae_mark(base.vae)
    keys = {"photos": picture_key(mark, subject.images, subject.masks)}
    keys |= {} if images is None else {"class_images": picture_key(mark, images)}
    base.vae.to(accelerator.device)
    if config.latent_cache:
        encode = cached_encoder(vae_encoder(base.vae), cache_root() / "latents", mark)
        with accelerator.main_process_first():  # the others find its files
            latents = prepare(subject, images, config, encode, generator)
    else:
        # a copy, which stays where it is and in full precision whatever becomes of the base's
        latents = prepare_live(subject, images, config, vae_encoder(copy.deepcopy(base.vae)))
    base.vae.to("cpu")
    share = float(coverage(latents.noise_masks).mean())
    if config.masking != "none" and share > 0.9:
        print(
            f"warning: the dilated masks cover {share:.0%} of the picture: masking does nothing; lower --mask_dilation"
        )
    noise = torch.randn(latents.photo_means[:1].shape, generator=generator)
    lap("latents")
    references = References(latents.photo_means, latents.subject_masks, noise, subject.names)
    return Data(latents, references, overlay_sheet(subject), keys)


def _make_missing_masks(config: TrainConfig, made: Path, device: torch.device) -> None:
    """Masks in `made` for photos without one; a resumed training keeps those that it began with."""
    how = MaskConfig(detector_model=config.detector_model, segmenter_model=config.segmenter_model)
    user = mask_folder(config.instance_data_dir, config.mask_dir)
    given = (user, made) if config.resume_from_checkpoint else (user,)
    make_masks(Path(config.instance_data_dir), how, made, word=config.class_word, given=given, device=device)


def photo_references(
    concept: Concept, base: Base, folder: str, mask_dir: str | None = None, made_masks: Path | None = None
) -> Concept:
    """The concept with References made of the photos in `folder`, as its training made them, which may have left
    `made_masks`. UserError: see `load_subject`."""
    settings = concept.settings
    binary = settings.get("binary_masks", True)
    subject = load_subject(
        folder,
        class_word=settings["class_word"],
        resolution=settings["resolution"],
        mask_dir=mask_dir,
        binary_masks=binary,
        made_masks=made_masks,
    )
    means = vae_encoder(base.vae)(subject.images)[0]
    masks = latent_masks(subject.masks, means.shape[-2:], TrainConfig(binary_masks=binary))
    return dataclasses.replace(concept, references=References(means, masks, concept.references.noise, subject.names))


def new_model(config: TrainConfig, base: Base) -> EqDiff:
    """The base with the subject's parts in it, as training starts them."""
    rare = base.tokenizer(config.rare_token, add_special_tokens=False).input_ids
    rows = start_rows(
        base,
        word=config.class_word if config.token_init == "class" else config.rare_token,
        n_rows=2 if config.fdte else 1,
        scale=config.token_init_scale,
    )
    return EqDiff(
        base,
        rows,
        rra=config.rra,
        rra_layers=config.rra_layers,
        unet_weights=config.unet_weights,
        gate_init=config.gate_init,
        clamp=config.gate_clamp,
        slot_by=config.slot_by,
        stand_in=rare[0],
    )


def build_model(config: TrainConfig, base: Base, accelerator: Accelerator) -> EqDiff:
    """`new_model` on the run's device, frozen weights in the precision of the run.

    It comes from the CPU: two UNets in full precision would fill an 8 GB card before the first step.
    """
    model = new_model(config, base)
    if accelerator.device.type == "cuda":
        model.to_dtype(PRECISIONS[accelerator.mixed_precision])
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model.to(accelerator.device)


def make_optimizer(model: EqDiff, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the one list of concept parameters, the token rows in a group of their own."""
    named = model.concept_parameters()
    tokens = [p for name, p in named.items() if name.startswith("tokens.")]
    others = [p for name, p in named.items() if not name.startswith("tokens.")]
    groups = [
        {"params": others, "lr": config.learning_rate, "weight_decay": config.adam_weight_decay},
        {"params": tokens, "lr": config.token_learning_rate, "weight_decay": config.token_weight_decay},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def preview(model: EqDiff, concept: Concept, config: TrainConfig, path: Path) -> None:
    """A grid of the preview prompts, one seed each, drawn with the concept as it is now; above them the first photos,
    as the VAE shows them, so that a copy of one is seen at once. Not with embed_reference off: the grid is passed on
    in the model card, and the photos are not to be."""
    names = {"toybox": "toybox_preview.txt"}
    file = config.validation_prompts or ASSETS / "prompts" / names.get(config.preset, "preview.txt")
    prompts = [p for p in read_prompts(file) for _ in range(config.num_validation_images)]
    model.vae.to(model.unet.device)
    pipe = EqDiffPipeline.of(model)
    pipe.attach(model, concept)
    model.unet.eval()
    seeds = [seed_of(config.seed, prompt, i % config.num_validation_images) for i, prompt in enumerate(prompts)]
    images, captions = pipe(prompts, seeds=seeds).images, [p.replace("{}", "S") for p in prompts]
    shown = concept.references.names[:COLUMNS] if config.embed_reference else ()
    columns = min(COLUMNS, max(len(shown), len(images)))
    if shown:
        photos = [to_pil(image) for image in decode(model.vae, concept.references.latents[: len(shown)])]
        blank = columns - len(shown)
        images = [*photos, *[Image.new("RGB", photos[0].size, "white")] * blank, *images]
        captions = [*shown, *[""] * blank, *captions]
    model.vae.to("cpu")
    model.unet.train(config.gradient_checkpointing)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=columns, captions=captions).save(path)
